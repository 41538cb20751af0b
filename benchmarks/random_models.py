"""Models with the geometry of Stable Diffusion 1.5, wide or narrow, and random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def make_model(share: float, files: Sequence[tuple[str, str, Path]]) -> int:
    """Writes a model of `share` of the width as files: (a format of `model_saving.FORMATS`, "float16", path) each.

    Returns the number of its parameters.
    """
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from library.models.layouts.formats import SavedModel, save_model
    from library.models.layouts.parts import ModelParts
    from library.models.stable_diffusion.layout import SD_1
    from library.models.text.text_encoder import build_text_encoder
    from library.models.text.tokenizer import load_tokenizer

    def width(full: int) -> int:
        return max(64, round(full * share / 64) * 64)

    text_width = width(768)
    unet = UNet2DConditionModel(
        block_out_channels=[width(channels) for channels in (320, 640, 1280, 1280)],
        cross_attention_dim=text_width,
        attention_head_dim=8,
    )
    vae = AutoencoderKL(
        block_out_channels=[width(channels) for channels in (128, 256, 512, 512)],
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=2,
    )
    text = build_text_encoder(
        {
            "vocab_size": 49408,
            "hidden_size": text_width,
            "intermediate_size": 4 * text_width,
            "num_hidden_layers": 12,
            "num_attention_heads": text_width // 64,
        }
    )
    parts = ModelParts(unet, vae, {"text_encoder": text})
    tokenizers = {"tokenizer": load_tokenizer(None, pads_with_end=True)}
    scheduler = {"prediction_type": "epsilon"}
    for form, precision, path in files:
        save_model(path, form, SavedModel(parts, SD_1, tokenizers, scheduler, getattr(torch, precision)))
    return sum(param.numel() for part in (unet, vae, text) for param in part.parameters())
