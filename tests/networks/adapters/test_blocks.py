"""Ranks and learning rates by block must be those of the blocks that other programs number so."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from library.cli.errors import UserError
from networks.adapters.arguments.blocks import (
    SD_BLOCKS,
    SDXL_BLOCKS,
    BlockRates,
    block_index,
    layout_of,
    lr_weights,
    mid_lr_weight,
)
from networks.lora import create_network, create_network_from_weights

CASES = json.loads(Path(__file__).with_name("block_cases.json").read_text())["cases"]
FOUR_TIMES_25 = ",".join(["4"] * 25)


@pytest.fixture(scope="module")
def sd_unet():
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=64, block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768, attention_head_dim=8
        )


def make(unet, **network_args):
    with torch.device("meta"):
        return create_network(1.0, 4, 1, None, [], unet, **network_args)


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(case["network_args"]))
def test_layers_and_parameter_groups_of_each_block(sd_unet, case):
    network = make(sd_unet, **case["network_args"])
    lines = sorted(f"{layer.name} {layer.rank} {layer.scale * layer.rank:.1f}" for layer in network.layers())
    assert len(lines) == case["num_layers"]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == case["digest"]
    groups, names = network.prepare_optimizer_params(None, 1e-4, 2e-4)
    assert names == [name for name, _ in case["groups"]]
    assert [group["lr"] for group in groups] == pytest.approx([rate for _, rate in case["groups"]], rel=1e-12)
    assert sum(len(group["params"]) for group in groups) == 2 * case["num_layers"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lora_unet_conv_in", None),
        ("lora_unet_time_embedding_linear_1", None),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", None),
        ("lora_unet_down_blocks_3_resnets_1_conv1", 11),
        ("lora_unet_down_blocks_0_downsamplers_0_conv", 3),
        ("lora_unet_up_blocks_0_upsamplers_0_conv", 15),
        ("lora_unet_mid_block_resnets_1_conv2", 12),
        ("lora_unet_up_blocks_3_resnets_2_conv_shortcut", 24),
        ("lora_unet_time_embed_0", 0),
        ("lora_unet_label_emb_0_0", 0),
        ("lora_unet_out_2", 22),
        ("lora_unet_input_blocks_1_0_in_layers_2", 2),
        ("lora_unet_input_blocks_8_1_proj_in", 9),
        ("lora_unet_middle_block_1_proj_in", 11),
        ("lora_unet_output_blocks_0_1_proj_in", 13),
    ],
)
def test_numbers_of_blocks(name, expected):
    """Measured on the trainer whose arguments these are."""
    is_sdxl = expected is not None and "_blocks_" not in name.replace("put_blocks", "") and "mid_block" not in name
    assert block_index(name, SDXL_BLOCKS if is_sdxl else SD_BLOCKS) == expected


def test_sdxl_has_weights_of_23_blocks():
    """Measured on the trainer whose arguments these are."""
    assert layout_of(["lora_unet_input_blocks_4_1_proj_in"]) == SDXL_BLOCKS
    rates = BlockRates(lr_weights("1,0.5,0,0.5,1,0.25,1,1,1"), mid_lr_weight("0.5,1,0"), lr_weights("sine"))
    sine = [0, 0.19509032201612825, 0.3826834323650898, 0.5555702330196022, 0.7071067811865475, 0.8314696123025452]
    expected = [1, 1, 0.5, 0, 0.5, 1, 0.25, 1, 1, 1, 0.5, 1, 0, *sine, 0.9238795325112867, 0.9807852804032304, 1, 1]
    assert rates.weights(SDXL_BLOCKS) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("network_args", "message"),
    [
        ({"block_dims": "4,4,4"}, "block_dims of --network_args is '4,4,4', but must be whole numbers from 0, 25 of"),
        ({"block_dims": ",".join(["4"] * 23)}, "block_dims has 23 values, but this U-Net has 25 blocks"),
        ({"block_dims": FOUR_TIMES_25.replace("4", "x", 1)}, "block_dims of --network_args is 'x,"),
        ({"block_alphas": FOUR_TIMES_25.replace("4", "-1", 1)}, "block_alphas of --network_args is '-1,"),
        ({"down_lr_weight": "bogus"}, "or one of sine, cosine, linear, reverse_linear, zeros"),
        ({"down_lr_weight": "0.5"}, "down_lr_weight of --network_args is '0.5'"),
        ({"down_lr_weight": "cosine+x"}, "down_lr_weight of --network_args is 'cosine+x'"),
        ({"up_lr_weight": ",".join(["1"] * 13)}, "up_lr_weight of --network_args"),
        ({"mid_lr_weight": "1,1,1"}, "mid_lr_weight has more numbers than this U-Net has blocks"),
    ],
)
def test_other_numbers_of_blocks_are_refused(sd_unet, network_args, message):
    with pytest.raises(UserError) as caught:
        make(sd_unet, **network_args)
    assert message in caught.value.message
    assert caught.value.hint


def test_a_middle_of_weight_0_is_not_trained(sd_unet):
    """0 says something here; an empty value, as front ends write it, does not."""
    layers = {layer.name for layer in make(sd_unet, mid_lr_weight="0").layers()}
    assert len(layers) == 180 and not any("mid_block" in name for name in layers)
    assert len(list(make(sd_unet, mid_lr_weight="", down_lr_weight="").layers())) == 192


def test_arguments_without_effect_are_named(sd_unet, caplog):
    make(sd_unet, block_lr_zero_threshold="0.1", conv_block_alphas=FOUR_TIMES_25, include_patterns=".*attn1.*")
    assert [message.replace(" of --network_args does nothing without ", ": ") for message in caplog.messages] == [
        "block_lr_zero_threshold: down_lr_weight or mid_lr_weight or up_lr_weight",
        "conv_block_alphas: conv_dim or conv_block_dims",
        "include_patterns: exclude_patterns",
    ]


def test_a_file_decides_the_layers_and_the_arguments_their_rates(unet, caplog):
    """What a file has trained in a block of weight 0 stays in effect and in the file, as it is."""
    weights = create_network(1.0, 4, 1, None, [], unet).state_dict()
    network, _ = create_network_from_weights(
        1.0, None, None, [], unet, weights_sd=weights, down_lr_weight="zeros", up_lr_weight="zeros+.5", conv_dim="4"
    )
    assert set(network.state_dict()) == set(weights)
    assert caplog.messages == [
        "conv_dim of --network_args does nothing: the layers and their ranks are those of the file"
    ]
    groups, names = network.prepare_optimizer_params(None, 1e-4, None)
    assert {group["lr"] for group, name in zip(groups, names, strict=True) if name != "unet_block12"} == {5e-5}
    frozen = {name.partition(".")[0] for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen and frozen == {name for name in network._modules if "down_blocks" in name}
