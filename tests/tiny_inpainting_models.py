"""Tiny inpainting models of each family, whose U-Nets take 9 channels, and their folders as Diffusers writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionInpaintPipeline, StableDiffusionXLInpaintPipeline
from torch import nn

from tests.programs import ROOT
from tests.tiny_models import make_tiny, make_tiny_sdxl, write_folder, write_sdxl_folder

BASE = ROOT / "examples" / "quickstart" / "base"


@dataclass(frozen=True)
class Example:
    """A tiny model of one family with a U-Net of 9 channels, its folder, and Diffusers' pipeline."""

    model: Any
    folder: Path
    pipeline: type[DiffusionPipeline]

    @property
    def unet(self) -> nn.Module:
        return self.model.unet


def widened(unet: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    unet.conv_in = nn.Conv2d(9, 32, 3, padding=1).requires_grad_(False)
    unet.register_to_config(in_channels=9)
    return unet


def _stable_diffusion(is_v2: bool, folder: Path) -> Example:
    model = make_tiny(is_v2)
    model = replace(model, unet=widened(model.unet))
    write_folder(model, folder)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionInpaintPipeline"}))
    return Example(model, folder, StableDiffusionInpaintPipeline)


def _sdxl(folder: Path) -> Example:
    model = make_tiny_sdxl()
    model = replace(model, unet=widened(model.unet))
    write_sdxl_folder(model, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "StableDiffusionXLInpaintPipeline"}))
    return Example(model, folder, StableDiffusionXLInpaintPipeline)


def write_inpainting_base(folder: Path) -> Path:
    """The quickstart's base with a first layer of 9 channels, of which none is zero."""
    pipe = StableDiffusionInpaintPipeline.from_pretrained(BASE, torch_dtype=torch.float32, safety_checker=None)
    torch.manual_seed(3)
    old, wide = pipe.unet.conv_in, nn.Conv2d(9, pipe.unet.conv_in.out_channels, 3, padding=1)
    with torch.no_grad():
        wide.weight[:, :4], wide.bias[:] = old.weight, old.bias
    pipe.unet.conv_in = wide
    pipe.unet.register_to_config(in_channels=9)
    pipe.save_pretrained(folder)
    return folder


MAKERS: dict[str, Callable[[Path], Example]] = {
    "sd1": lambda folder: _stable_diffusion(False, folder),
    "sd2": lambda folder: _stable_diffusion(True, folder),
    "sdxl": _sdxl,
}
