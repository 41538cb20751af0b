"""Tiny Stable Diffusion and Stable Diffusion XL models with random weights, and the files they can come in."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from library.models.layouts import ldm_text, ldm_unet, ldm_vae
from library.models.layouts.ldm_keys import rename_key
from library.models.stable_diffusion.layout import SD_2
from library.models.text.tokenizer import SHIPPED_VOCABULARY

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline


@dataclass(frozen=True)
class TinyModel:
    """The networks as Diffusers and transformers built them, to compare with."""

    is_v2: bool
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel


def make_tiny(is_v2: bool) -> TinyModel:
    torch.manual_seed(7)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=[1, 1] if is_v2 else 8,
        use_linear_projection=is_v2,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=1,
            hidden_act="gelu" if is_v2 else "quick_gelu",
        )
    )
    _disturb(unet, vae, text_encoder)
    return TinyModel(is_v2, unet, vae, text_encoder)


def _disturb(*modules: nn.Module) -> None:
    """Freezes modules and changes all of their weights: norms too, so that a swapped one shows."""
    for module in modules:
        module.eval().requires_grad_(False)
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)


def to_stability_layout(model: TinyModel) -> dict[str, torch.Tensor]:
    """The tensors of a single file, made by reading the tables of names backwards."""
    tensors = {}
    unet_modules = ldm_unet.module_names(model.unet.config)
    for name, tensor in model.unet.state_dict().items():
        tensors[ldm_unet.PREFIX + rename_key(name, unet_modules)] = tensor.clone()
    vae_modules = ldm_vae.module_names(model.vae.config)
    for name, tensor in model.vae.state_dict().items():
        if tensor.dim() == 2:  # attention: 1x1 convolutions in the layout
            tensor = tensor[:, :, None, None]
        tensors[ldm_vae.PREFIX + rename_key(name, vae_modules)] = tensor.clone()
    text = {key.removeprefix("text_model."): tensor for key, tensor in model.text_encoder.state_dict().items()}
    text.pop("embeddings.position_ids", None)
    tensors.update(_open_clip(text) if model.is_v2 else _open_ai(text))
    return tensors


def _open_ai(text: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"cond_stage_model.transformer.text_model.{name}": tensor.clone() for name, tensor in text.items()}


def _open_clip(text: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    thirds: dict[str, dict[int, torch.Tensor]] = {}
    for name, tensor_slice in ldm_text.tensor_slices(text, SD_2.text_encoders[0]).items():
        thirds.setdefault(tensor_slice.key, {})[tensor_slice.third or 0] = text[name]
    tensors = {key: torch.cat([parts[index] for index in sorted(parts)]) for key, parts in thirds.items()}
    for key in [key for key in tensors if ".resblocks.1." in key]:  # the last layer, which SD 2.x does not use
        tensors[key.replace(".resblocks.1.", ".resblocks.2.")] = torch.randn_like(tensors[key])
    tensors["text_projection"] = torch.randn(64, 64)
    tensors["logit_scale"] = torch.tensor(4.6)
    return {SD_2.text_encoders[0].prefix + key: tensor for key, tensor in tensors.items()}


def write_folder(model: TinyModel, folder: Path, *, prediction_type: str = "epsilon", **saving) -> Path:
    """A Diffusers folder, written by Diffusers and transformers themselves; `saving` goes to save_pretrained."""
    model.unet.save_pretrained(folder / "unet", **saving)
    model.vae.save_pretrained(folder / "vae", **saving)
    saving.pop("safe_serialization", None)  # which transformers no longer knows
    model.text_encoder.save_pretrained(folder / "text_encoder", **saving)
    DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction_type
    ).save_pretrained(folder / "scheduler")
    shutil.copytree(SHIPPED_VOCABULARY, folder / "tokenizer")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return folder


@dataclass(frozen=True)
class TinySDXL:
    """The networks of a Stable Diffusion XL model as Diffusers and transformers built them, to compare with."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    text_encoder_2: CLIPTextModelWithProjection


def make_tiny_sdxl() -> TinySDXL:
    """Three levels with 0, 1 and 2 transformer blocks, text of widths 32 and 64, a projection from 64 to 48."""
    torch.manual_seed(7)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=[1, 1, 2],  # the first level has no attention
        cross_attention_dim=96,
        attention_head_dim=[1, 1, 1],
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=6 * 256 + 48,
    )
    vae = AutoencoderKL(
        block_out_channels=(32,) * 4,  # 8 pixels a latent
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        sample_size=64,
        scaling_factor=0.13025,
    )
    ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}  # as the published model says
    first = CLIPTextConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=1, projection_dim=32, **ids
    )
    second = CLIPTextConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=1,
        hidden_act="gelu",
        projection_dim=48,
        **ids,
    )
    model = TinySDXL(unet, vae, CLIPTextModel(first), CLIPTextModelWithProjection(second))
    _disturb(model.unet, model.vae, model.text_encoder, model.text_encoder_2)
    return model


def make_sdxl_pipeline(model: TinySDXL, *, prediction_type: str = "epsilon") -> StableDiffusionXLPipeline:
    """Diffusers' pipeline of a model, with the tokenizers (the second pads with "!") and scheduler of the published."""
    from diffusers import StableDiffusionXLPipeline

    settings = {"local_files_only": True, "model_max_length": 77}
    return StableDiffusionXLPipeline(
        vae=model.vae,
        text_encoder=model.text_encoder,
        text_encoder_2=model.text_encoder_2,
        tokenizer=CLIPTokenizer.from_pretrained(SHIPPED_VOCABULARY, **settings),
        tokenizer_2=CLIPTokenizer.from_pretrained(SHIPPED_VOCABULARY, pad_token="!", **settings),
        unet=model.unet,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type=prediction_type,
            steps_offset=1,
            timestep_spacing="leading",
        ),
        add_watermarker=False,
    )


def write_sdxl_folder(model: TinySDXL, folder: Path, *, prediction_type: str = "epsilon", **saving) -> Path:
    """A Diffusers folder, written by Diffusers' own pipeline; `saving` (`variant`, `max_shard_size`) goes to it.

    The tokenizers are the files of the published model, which recent versions of transformers would join to one.
    """
    make_sdxl_pipeline(model, prediction_type=prediction_type).save_pretrained(folder, **saving)
    for name, pad_token in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        shutil.rmtree(folder / name)
        shutil.copytree(SHIPPED_VOCABULARY, folder / name)
        config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": pad_token}
        (folder / name / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
