"""Loads the parts and tokenizers of a model, as the layout of its family describes them, and checks that they fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from library.cli.errors import UserError
from library.models.layouts.diffusers_folder import DiffusersFolder, load_folder
from library.models.layouts.ldm_layout import load_single_file
from library.models.layouts.model_layout import ModelLayout, channels_error, fits_latents
from library.models.layouts.parts import ModelParts
from library.models.layouts.vae_loading import load_vae
from library.models.options import ModelOptions
from library.models.text.tokenizer import PromptTokenizer, load_tokenizer
from library.models.weights.checkpoint_files import WeightFile
from library.models.weights.module_weights import FLOAT32

_NUM_SIZES = 6  # embedded beside the pooled text: original size, crop, target size; 2307.01952, section 2.2


@dataclass(frozen=True)
class LoadedModel:
    """The parts of a model, and its tokenizers by the names of their folders."""

    parts: ModelParts
    tokenizers: Mapping[str, PromptTokenizer]


def load_model(
    source: DiffusersFolder | WeightFile,
    layout: ModelLayout,
    options: ModelOptions,
    dtypes: Mapping[str, torch.dtype] = FLOAT32,
) -> LoadedModel:
    """Reads a model, with the VAE of `--vae` where that is given; frozen, in eval mode.

    `dtypes`: of the parts "unet", "vae" and "text_encoder" (all of them), float32 where not given: each tensor is
    converted as it is read, so that no part is ever larger than it is kept. Raises `UserError` for files that are
    incomplete or do not fit together.
    """
    is_mapped = not options.disable_mmap_load_safetensors
    vae = None
    if options.vae is not None:
        dtype = dtypes.get("vae", torch.float32)
        vae = load_vae(options.vae, layout.scaling_factor, dtype=dtype, is_mapped=is_mapped)
    if isinstance(source, WeightFile):
        parts = load_single_file(source, layout, vae, dtypes)
    else:
        parts = load_folder(source, layout, vae, dtypes)
    _check_channels(parts, str(source.path))
    _check_widths(parts, layout, str(source.path))
    return LoadedModel(parts, _load_tokenizers(source, layout, parts))


def _check_channels(parts: ModelParts, source: str) -> None:
    """Raises `UserError` for variants whose U-Net takes more than an image, and a mask with what it leaves of one."""
    latents, unet = parts.vae.config.latent_channels, parts.unet.config
    if not fits_latents(parts.unet_channels, latents):
        raise channels_error(source, parts.unet_channels, latents)
    if unet.class_embed_type is not None or unet.num_class_embeds is not None:
        raise UserError(f"{source}: the U-Net takes class labels or noise levels", "give a text-to-image model")


def _check_widths(parts: ModelParts, layout: ModelLayout, source: str) -> None:
    """Raises `UserError` for a U-Net that does not take what the text encoders give."""
    hint = f"{' and '.join(['unet', *parts.text_encoders])} are of different models"
    given = sum(encoder.config.hidden_size for encoder in parts.text_encoders.values())
    unet = parts.unet.config
    if unet.cross_attention_dim != given:
        gives = "text encoder gives" if len(parts.text_encoders) == 1 else "text encoders give"
        raise UserError(
            f"{source}: the U-Net expects text of width {unet.cross_attention_dim}, the {gives} {given}", hint
        )
    for text in layout.text_encoders:
        if not text.has_projection:
            continue
        width = (unet.projection_class_embeddings_input_dim or 0) - _NUM_SIZES * (unet.addition_time_embed_dim or 0)
        pooled = parts.text_encoders[text.name].config.projection_dim
        if unet.addition_embed_type != "text_time" or width != pooled:
            raise UserError(
                f"{source}: the U-Net expects pooled text of width {width}, the {text.title} gives {pooled}", hint
            )


def _load_tokenizers(
    source: DiffusersFolder | WeightFile, layout: ModelLayout, parts: ModelParts
) -> dict[str, PromptTokenizer]:
    tokenizers = {}
    for text in layout.text_encoders:
        has_own = not isinstance(source, WeightFile) and source.has(text.tokenizer)
        folder = source.path / text.tokenizer if has_own else None
        tokenizer = load_tokenizer(folder, pads_with_end=text.pads_with_end)
        num_tokens, vocab_size = len(tokenizer.tokenizer), parts.text_encoders[text.name].config.vocab_size
        if num_tokens > vocab_size:
            message = f"{source.path}: the {text.tokenizer} has {num_tokens} tokens, the {text.title} {vocab_size}"
            raise UserError(message, f"{text.tokenizer} and {text.name} are of different models")
        tokenizers[text.tokenizer] = tokenizer
    return tokenizers
