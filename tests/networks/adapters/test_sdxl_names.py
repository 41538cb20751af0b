"""If these fail, LoRA files for Stable Diffusion XL are not read by other programs, or theirs not here."""

from __future__ import annotations

import hashlib
import importlib

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from library.models.latent_diffusion.layer_names import StabilityNamedUNet
from networks.adapters.targets import unet_layers
from networks.lora import create_network, create_network_from_weights
from tests.tiny_models import make_tiny_sdxl


@pytest.mark.parametrize(
    ("convolutions", "count", "digest"),
    [
        (False, 722, "5d819b833e27947d429ba79ac3e24f388212474b229fb83dbc3444086264e018"),
        (True, 788, "6eaed2d7a4528e0a5cd7d54f06410bec8d1c8b707015310af1925b23533a4b69"),
    ],
)
def test_layers_of_the_published_unet_have_the_names_of_other_programs_files(convolutions, count, digest):
    """The digests are of the names, sorted, in files of the scripts that this program stands in for."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=[1, 2, 10],
            cross_attention_dim=2048,
            attention_head_dim=[5, 10, 20],
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
    names = sorted(target.name for target in unet_layers(StabilityNamedUNet(unet), convolutions))
    assert len(names) == count
    assert hashlib.sha256("\n".join(names).encode()).hexdigest() == digest


def test_files_with_the_names_of_diffusers_are_read_too(tmp_path):
    tiny = make_tiny_sdxl()
    encoders, view = [tiny.text_encoder, tiny.text_encoder_2], StabilityNamedUNet(tiny.unet)
    theirs = create_network(1.0, 2, 2, None, encoders, tiny.unet, conv_dim="2")
    for layer in theirs.layers():
        torch.nn.init.normal_(layer.lora_up.weight)
    file = tmp_path / "theirs.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}, file)
    ours, _ = create_network_from_weights(1.0, file, None, encoders, view)
    assert any(layer.name.startswith("lora_unet_input_blocks_") for layer in ours.layers())
    assert len(list(ours.layers())) == len(list(theirs.layers()))
    fresh = create_network(1.0, 2, 2, None, encoders, view, conv_dim="2")
    assert fresh.load_weights(file).num_layers == len(list(theirs.layers()))
    written = tmp_path / "ours.safetensors"
    fresh.save_weights(written)
    assert sorted(map(str, _norms(load_file(written)))) == sorted(map(str, _norms(load_file(file))))


def test_lycoris_gives_the_same_names():
    from lycoris.kohya import create_network as create_lycoris

    from library.methods.foreign_networks import unet_for

    tiny = make_tiny_sdxl()
    encoders, view = [tiny.text_encoder, tiny.text_encoder_2], StabilityNamedUNet(tiny.unet)
    module = importlib.import_module("lycoris.kohya")
    theirs = create_lycoris(
        1.0, 2, 2, None, encoders, unet_for(module, view), algo="locon", conv_dim="2", conv_alpha="2",
        warn_on_unmatched=False,
    )  # fmt: skip
    ours = create_network(1.0, 2, 2, None, encoders, view, conv_dim="2")
    found = {layer.lora_name for layer in theirs.unet_loras}
    assert found == {layer.name for layer in ours.layers() if layer.name.startswith("lora_unet")}


def _norms(tensors):
    return [(tuple(each.shape), round(float(each.double().norm()), 6)) for each in tensors.values()]
