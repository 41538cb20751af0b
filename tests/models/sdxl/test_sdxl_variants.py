"""If these fail, distilled Stable Diffusion XL models, or files by other writers, are refused or read wrongly."""

from __future__ import annotations

import re

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from library.models.layouts.config_metadata import assumed_config, part_section
from library.models.layouts.ldm_writing import unet_tensors
from library.models.layouts.parts import empty_unet
from library.models.options import ModelOptions
from library.models.registry import read_model
from library.models.sdxl.layout import SDXL

SMALLER = {  # than the base model, which has two transformer blocks on its second level and ten on its third
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}

# the published distilled models, of two layers a level: blocks of each layer on the way down and up; none in the middle
DISTILLED = {
    "SSD-1B": ([1, [2, 2], [4, 4]], [[4, 4, 10], [2, 1, 1], 1]),
    "Segmind-Vega": ([1, [1, 1], [2, 2]], [[2, 2, 2], [1, 1, 1], 1]),
}


@pytest.mark.parametrize("name", DISTILLED)
def test_a_distilled_unet_is_shown_by_the_tensors_of_a_file(name):
    """At full size, without weights."""
    down, up = DISTILLED[name]
    usual = SMALLER | {"transformer_layers_per_block": down, "reverse_transformer_layers_per_block": up}
    with torch.device("meta"):
        unet = UNet2DConditionModel(**usual)
    tensors = {
        key: torch.empty(each.shape, device="meta") for key, each in unet_tensors(unet, SDXL, torch.half).items()
    }
    blocks = [f"input_blocks.{number}" for number in (4, 5, 7, 8)] + [f"output_blocks.{number}" for number in range(6)]
    norms = [key for key in tensors if re.search(r"transformer_blocks\.\d+\.norm1\.weight", key)]
    assert [sum(f".{block}." in key for key in norms) for block in blocks] == [*sum(down[1:], []), *sum(up[:2], [])]
    assert {key.split(".")[3] for key in tensors if ".middle_block." in key} == {"0"}
    config = assumed_config("unet", part_section("unet", tensors, SDXL, "x"), SDXL)
    shapes = [{key: each.shape for key, each in part.state_dict().items()} for part in (empty_unet(config, "x"), unet)]
    assert shapes[0] == shapes[1]
    assert [config["block_out_channels"], config["attention_head_dim"]] == [[320, 640, 1280], [5, 10, 20]]


def test_the_projection_may_be_that_of_a_linear_layer(tiny_sdxl, sdxl_file, tmp_path):
    """Under that name it is the transpose of OpenCLIP's."""
    tensors = load_file(sdxl_file)
    name = "conditioner.embedders.1.model.text_projection"
    tensors[f"{name}.weight"] = tensors.pop(name).T.contiguous()
    save_file(tensors, tmp_path / "model.safetensors")
    encoder = read_model(ModelOptions(str(tmp_path / "model.safetensors"))).loaded.parts.text_encoders["text_encoder_2"]
    found = encoder.state_dict()["text_projection.weight"].to("cpu")
    assert torch.equal(found, tiny_sdxl.text_encoder_2.text_projection.weight)
