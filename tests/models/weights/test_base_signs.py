"""If these fail, a LoRA or an embedding of another kind of model is refused only once the model is loaded, or a fitting
one is refused.

Names and shapes are those of published files: the width of text that a U-Net takes is 768 in Stable Diffusion 1.x, 1024
in 2.x and 2048 in XL.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from library.models.families import base_problem

SD1, SD2, SDXL = "Stable Diffusion 1.x", "Stable Diffusion 2.x", "Stable Diffusion XL"
SD = (SD1, SD2)
ATTENTION = "attentions_0_transformer_blocks_0_attn2_to_k"
DEEP = "lora_unet_mid_block_attentions_0_transformer_blocks_9_attn1_to_q.lora_down.weight"
LAST = "attentions_0.proj_in.lora_down.weight"
FILES = {
    "LoRA of 1.x": ({f"lora_unet_down_blocks_0_{ATTENTION}.lora_down.weight": (4, 768)}, (SD1,)),
    "LoCon of 2.x": ({f"lora_unet_up_blocks_1_{ATTENTION}.lora_down.weight": (4, 1024, 1, 1)}, (SD2,)),
    "LoHa of 1.x": ({f"lora_unet_mid_block_{ATTENTION}.hada_w1_b": (4, 768)}, (SD1,)),
    "LoRA of XL": ({"lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight": (4, 2048)}, (SDXL,)),
    "LoRA of XL by Diffusers' names": ({f"lora_unet_down_blocks_1_{ATTENTION}.lora_down.weight": (4, 2048)}, (SDXL,)),
    "PEFT, XL": ({"unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v.lora_A.weight": (4, 2048)}, (SDXL,)),
    "PEFT, 1.x": ({"unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v.lora_A.weight": (4, 768)}, (SD1,)),
    "Diffusers, 2.x": (
        {"unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora.down.weight": (4, 1024)},
        (SD2,),
    ),
    "text encoder of 1.x or 2.x": ({"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (4, 768)}, SD),
    "no width shown, XL": ({"lora_unet_middle_block_1_proj_in.lokr_w1": (4, 4)}, (SDXL,)),
    "no width shown, ten blocks": ({DEEP: (4, 1280)}, (SDXL,)),
    "embedding of 1.x": ({"emb_params": (2, 768)}, (SD1,)),
    "embedding of 2.x": ({"emb_params": (2, 1024)}, (SD2,)),
    "embedding of XL": ({"clip_l": (2, 768), "clip_g": (2, 1280)}, (SDXL,)),
    # what does not show it fits everywhere
    "no text layers": ({"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (4, 320)}, (*SD, SDXL)),
    "another program's": ({"network.0.weight": (4, 4)}, (*SD, SDXL)),
    "one of two encoders": ({"text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight": (4, 768)}, (*SD, SDXL)),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_fits_the_models_that_its_header_shows(name, tmp_path):
    shapes, fitting = FILES[name]
    path = tmp_path / "file.safetensors"
    save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, path)
    problems = {title: base_problem("--network_weights", str(path), title, "base") for title in (SD1, SD2, SDXL)}
    assert tuple(title for title, problem in problems.items() if problem is None) == fitting
    for title, problem in problems.items():
        if problem is not None:
            made_for = " or ".join(fitting)
            assert problem.message == f"--network_weights {path} was made for {made_for}, but base is {title}"


@pytest.mark.parametrize(
    ("version", "title"), [("sd_v1", SD1), ("sd_v2_768_v", SD2), ("sd_v2", SD2), ("sdxl_base_v1-0", SDXL)]
)
def test_metadata_say_it_where_no_shape_does(version, title, tmp_path):
    path = tmp_path / "file.safetensors"
    layer = {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": torch.zeros(4, 320)}
    save_file(layer, path, {"ss_base_model_version": version})
    fitting = [each for each in (SD1, SD2, SDXL) if base_problem("--base_weights", str(path), each, "base") is None]
    assert fitting == [title]


def test_the_web_uis_pickles_of_embeddings_show_it_too(tmp_path):
    path = tmp_path / "word.pt"
    torch.save({"string_to_param": {"*": torch.zeros(2, 768)}, "name": "word"}, path)
    assert base_problem("--weights", str(path), SD1, "base") is None
    assert f"made for {SD1}, but base is {SDXL}" in base_problem("--weights", str(path), SDXL, "base").message
