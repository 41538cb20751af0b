"""The base model before training: a small Stable Diffusion 1.x with random weights, as a Diffusers folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

TOKEN_STD = (
    0.05  # of the token table; about that of trained vectors, so that an unknown word is no smaller than they are
)
WIDTH = 64
MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def random_text_encoder() -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=WIDTH,
        projection_dim=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=1,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )
    encoder = CLIPTextModel(config)
    torch.nn.init.normal_(encoder.get_input_embeddings().weight, std=TOKEN_STD)
    return encoder


def random_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(64, 96, 128),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,  # which is the number of heads here, as in Stable Diffusion 1.x
        cross_attention_dim=WIDTH,
        norm_num_groups=8,
    )


def random_model(folder: Path, vae: Path, tokenizer: Path, seed: int) -> Path:
    """Writes a model with random U-Net and text encoder to `folder`; VAE and tokenizer are copies of those folders."""
    torch.manual_seed(seed)
    random_text_encoder().save_pretrained(folder / "text_encoder")
    random_unet().save_pretrained(folder / "unet")
    DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    ).save_pretrained(folder / "scheduler")
    shutil.copytree(vae, folder / "vae", dirs_exist_ok=True)
    shutil.copytree(tokenizer, folder / "tokenizer", dirs_exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps(MODEL_INDEX, indent=2) + "\n", encoding="utf-8")
    return folder
