"""Models with the geometry of Stable Diffusion 1.5 or XL, wide or narrow, and random weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
_BIG_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
# the U-Net's configuration, widths that are scaled among it, and those of the text encoders
_UNETS: dict[str, dict[str, Any]] = {
    "sd15": {"block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8},
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": [1, 2, 10],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
    },
}
_TEXTS: dict[str, dict[str, dict[str, Any]]] = {
    "sd15": {"text_encoder": _CLIP_L},
    "sdxl": {"text_encoder": _CLIP_L, "text_encoder_2": _BIG_G},
}


def make_model(share: float, files: Sequence[tuple[str, str, Path]], geometry: str = "sd15") -> int:
    """Writes a model of `share` of the width as files: (a format of `formats.FORMATS`, "float16", path) each.

    `geometry`: "sd15" or "sdxl". No more than a tensor is in memory. Returns the number of its parameters.
    """
    import torch

    from library.models.layouts.formats import SavedModel, save_model
    from library.models.layouts.parts import ModelParts, empty_text_encoder, empty_unet, empty_vae
    from library.models.sdxl.layout import SDXL
    from library.models.stable_diffusion.layout import SD_1
    from library.models.text.tokenizer import load_tokenizer

    layout = {"sd15": SD_1, "sdxl": SDXL}[geometry]
    encoders = {
        text.name: empty_text_encoder(_text_config(_TEXTS[geometry][text.name], share), "text encoder", text)
        for text in layout.text_encoders
    }
    channels = [_width(full, share) for full in (128, 256, 512, 512)]
    vae = {
        "block_out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "scaling_factor": layout.scaling_factor,
    }
    parts = ModelParts(
        empty_unet(_unet_config(geometry, share), "U-Net"),
        empty_vae(vae, "VAE"),
        encoders,
    )
    for module in parts.modules.values():
        _fill_at_random(module)
    texts = layout.text_encoders
    tokenizers = {text.tokenizer: load_tokenizer(None, pads_with_end=text.pads_with_end) for text in texts}
    for form, precision, path in files:
        model = SavedModel(parts, layout, tokenizers, {"prediction_type": "epsilon"}, getattr(torch, precision))
        save_model(path, form, model)
    return sum(parameter.numel() for part in parts.modules.values() for parameter in part.parameters())


def _width(full: int, share: float) -> int:
    return max(64, round(full * share / 64) * 64)


def _text_config(config: Mapping[str, Any], share: float) -> dict[str, Any]:
    scaled = {key: _width(config[key], share) for key in ("hidden_size", "projection_dim") if key in config}
    width = scaled["hidden_size"]
    return {**config, **scaled, "vocab_size": 49408, "intermediate_size": 4 * width, "num_attention_heads": width // 64}


def _unet_config(geometry: str, share: float) -> dict[str, Any]:
    config = dict(_UNETS[geometry])
    channels = [_width(full, share) for full in config["block_out_channels"]]
    texts = [_text_config(text, share) for text in _TEXTS[geometry].values()]
    config["block_out_channels"] = channels
    config["cross_attention_dim"] = sum(text["hidden_size"] for text in texts)
    config.setdefault("attention_head_dim", [width // 64 for width in channels])
    if "addition_embed_type" in config:
        config["projection_class_embeddings_input_dim"] = 6 * 256 + texts[-1]["projection_dim"]
    return config


def _fill_at_random(module: nn.Module) -> None:
    """Gives the state_dict of a module on the device "meta" random tensors, each made when it is used."""
    import torch

    from library.models.weights.lazy_tensors import LazyTensors, leave_unread

    block = torch.empty(2**20).normal_(0, 0.02)

    def make(shape: torch.Size) -> torch.Tensor:
        return block.repeat(-(-shape.numel() // len(block)))[: shape.numel()].reshape(shape)

    readers = {name: lambda shape=tensor.shape: make(shape) for name, tensor in module.state_dict().items()}
    leave_unread(module, LazyTensors(readers))
