"""A U-Net whose layers go by the names of the Stability layout, as adapter files for Stable Diffusion XL name them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from library.models.layouts.ldm_keys import rename_key
from library.models.layouts.ldm_unet import module_names
from library.models.layouts.model_layout import ModelLayout

_BLOCK = re.compile(r"(?:input_blocks|output_blocks)\.\d+\.\d+|middle_block\.\d+")


def unet_for_adapters(unet: Any, layout: ModelLayout) -> Any:
    """The U-Net as networks are given it: its layers go by the names that adapter files of the family have."""
    return StabilityNamedUNet(unet) if layout.names_layers_as_files else unet


class StabilityNamedUNet:
    """A view of a U-Net of Diffusers, given to networks in its place: `named_modules` says other names, in its order.

    Published adapters for Stable Diffusion XL have `lora_unet_input_blocks_4_1_...`, where those for 1.x and 2.x have
    Diffusers' names. `other_names`: of each layer in files that have Diffusers' names, to the name here.
    """

    def __init__(self, unet: Any):
        self._unet = unet
        self._table = module_names(unet.config)
        self._blocks = {
            path.rpartition(".")[0]: found.group()
            for path, name in self._table.items()
            if (found := _BLOCK.match(name)) and found.group() != name
        }
        self.other_names = {path: self._name(path) for path, _ in unet.named_modules() if path}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._unet, name)

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        for path, module in self._unet.named_modules(*args, **kwargs):
            yield self._name(path), module

    def _name(self, path: str) -> str:
        if path in self._blocks:
            return self._blocks[path]
        return rename_key(f"{path}.weight", self._table).removesuffix(".weight")
