"""Layers of a LoRA for Stable Diffusion XL that has Diffusers' names, under those that files of this family have."""

from __future__ import annotations

import re
from dataclasses import replace

from library.models.families import family_named, made_for
from library.models.layouts.ldm_unet import module_names
from library.models.weights.lazy_tensors import renamed
from networks.weight_tools.lora_file import LoRAFile

_FRONT = "lora_unet_"
_LAYER = re.compile(_FRONT + r"down_blocks_\d_(?:resnets|attentions)_(\d)_")
_ATTENDS = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")


def with_family_names(file: LoRAFile) -> LoRAFile:
    """The file as it is, or with other names for its layers of the U-Net: so that two files say the same of a layer,
    and its blocks are numbered as the family's."""
    if family_named("sdxl").title not in made_for(file):
        return file
    names = _table(file)
    new_of = {name: _renamed(name, names) for name in file.ranks}
    keys = {f"{new_of[name]}{dot}{part}": f"{name}{dot}{part}" for name, dot, part in map(_split, file.tensors)}
    ranks = {new_of[name]: rank for name, rank in file.ranks.items()}
    return replace(file, ranks=ranks, tensors=renamed(file.tensors, keys))


def _split(key: str) -> tuple[str, str, str]:
    return key.partition(".")


def _table(file: LoRAFile) -> list[tuple[str, str]]:
    """Beginnings of names, Diffusers' and the family's; the longest first."""
    layers = [int(found[1]) for found in map(_LAYER.match, file.ranks) if found]
    config = {
        "down_block_types": _ATTENDS,
        "layers_per_block": max(layers, default=1) + 1,
        "addition_embed_type": "text_time",
    }
    names = [
        (_FRONT + old.replace(".", "_"), _FRONT + new.replace(".", "_")) for old, new in module_names(config).items()
    ]
    return sorted(names, key=lambda pair: len(pair[0]), reverse=True)


def _renamed(name: str, names: list[tuple[str, str]]) -> str:
    return next((new + name.removeprefix(old) for old, new in names if f"{name}_".startswith(f"{old}_")), name)
