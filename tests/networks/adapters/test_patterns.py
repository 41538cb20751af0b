"""Patterns over module names: what is left out, and what has a rank or a learning rate of its own."""

import pytest

from library.cli.errors import UserError
from networks.lora import create_network


def make(text_encoder, unet, **network_args):
    return create_network(1.0, 4, 1, None, text_encoder, unet, **network_args)


def ranks(network):
    return {layer.name: layer.rank for layer in network.layers()}


def test_excluded_layers_are_left_out_unless_included(text_encoder, unet):
    everything = ranks(make(text_encoder, unet))
    excluded = ranks(make(text_encoder, unet, exclude_patterns="['.*attn2.*', r'.*\\.mlp\\.fc1']"))
    assert set(excluded) == {name for name in everything if "attn2" not in name and "fc1" not in name}
    some = ranks(make(text_encoder, unet, exclude_patterns=r"down_blocks\..*", include_patterns=".*attn1.*"))
    assert set(some) == {name for name in everything if "_down_blocks_" not in name or "attn1" in name}


def test_a_pattern_sets_the_rank_and_0_leaves_out(text_encoder, unet):
    """The first that matches the whole name counts; a comma in a pattern is part of it."""
    network_reg_dims = r"to_q=1,.*\.attn\d\.to_[qk]=2,.*ff\.net.{3,4}proj=0,.*attn\d.*=8"

    def rank(name):
        if name.endswith(("attn1_to_q", "attn1_to_k", "attn2_to_q", "attn2_to_k")):
            return 2
        return 0 if "ff_net_0_proj" in name else 8 if "attn1" in name or "attn2" in name else 4

    expected = {name: rank(name) for name in ranks(make(text_encoder, unet)) if rank(name)}
    assert ranks(make(text_encoder, unet, network_reg_dims=network_reg_dims)) == expected


def test_a_pattern_sets_the_learning_rate(text_encoder, unet):
    """The first that matches counts; 0 freezes, and a part of rate 0 trains what has a rate of its own."""
    network = make(text_encoder, unet, network_reg_lrs=".*attn1.*=2e-4,.*fc1=3e-5,.*fc2=0", loraplus_unet_lr_ratio="4")
    groups, names = network.prepare_optimizer_params(0, 1e-4, None)
    rates = {name: group["lr"] for name, group in zip(names, groups, strict=True)}
    assert rates == pytest.approx(
        {
            "textencoder_reg_lr_1": 3e-5,
            "unet": 1e-4,
            "unet plus": 4e-4,
            "unet_reg_lr_0": 2e-4,
            "unet_reg_lr_0 plus": 8e-4,
        }
    )
    trained = {name.partition(".")[0] for name, param in network.named_parameters() if param.requires_grad}
    assert trained == {name for name in ranks(network) if name.startswith("lora_unet") or name.endswith("fc1")}
    of_attn1 = {id(param) for name, param in network.named_parameters() if "attn1" in name}
    grouped = zip(names, groups, strict=True)
    assert {id(param) for name, group in grouped if "reg_lr_0" in name for param in group["params"]} == of_attn1


def test_patterns_that_match_nothing_are_named(text_encoder, unet, caplog):
    make(text_encoder, unet, exclude_patterns="attn1", network_reg_lrs=".*attn1.*=1e-4,.*attn3.*=1e-4")
    assert caplog.messages == [
        "exclude_patterns of --network_args: attn1 matches no module",
        "network_reg_lrs of --network_args: .*attn3.* matches no module",
    ]


@pytest.mark.parametrize(
    ("network_args", "message"),
    [
        ({"exclude_patterns": "[1]"}, "exclude_patterns of --network_args is '[1]', but must be a regular expression"),
        ({"exclude_patterns": "*attn"}, "*attn is none: nothing to repeat"),
        (
            {"network_reg_dims": ".*attn.*"},
            "network_reg_dims of --network_args is '.*attn.*', but must be pattern=rank",
        ),
        ({"network_reg_dims": ".*attn.*=2.5"}, "a rank is a whole number from 0"),
        ({"network_reg_lrs": "(=1e-4"}, "( is none: missing )"),
        ({"network_reg_lrs": "a=-1"}, "a rate is a number from 0"),
    ],
)
def test_what_is_no_pattern_is_refused(text_encoder, unet, network_args, message):
    with pytest.raises(UserError) as caught:
        make(text_encoder, unet, **network_args)
    assert message in caught.value.message
