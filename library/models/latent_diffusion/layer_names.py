"""A U-Net whose layers go by the names of the Stability layout, as adapter files for Stable Diffusion XL name them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from library.models.layouts.ldm_keys import rename_key
from library.models.layouts.ldm_unet import module_names
from library.models.layouts.model_layout import ModelLayout

_EMBEDDINGS = {"time_embedding": "time_embed", "add_embedding": "label_emb.0"}  # plain sequences in that layout
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

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]:
        """The U-Net's; blocks are views whose own `named_modules` says these names too, for networks that ask it."""
        for path, module in self._unet.named_modules(*args, **kwargs):
            yield self._name(path), self._block(path, module)

    def _block(self, path: str, module: nn.Module) -> Any:
        """A view of a block that the layout names, with the name of its class; other modules as they are."""
        if path not in self._blocks and path not in _EMBEDDINGS:
            return module
        start = f"{self._name(path)}."
        names = {
            child: self._name(f"{path}.{child}").removeprefix(start) for child, _ in module.named_modules() if child
        }
        kind = "Sequential" if path in _EMBEDDINGS else type(module).__name__
        return type(kind, (_BlockView,), {})(module, names)

    def _name(self, path: str) -> str:
        if path in self._blocks or path in _EMBEDDINGS:
            return self._blocks.get(path) or _EMBEDDINGS[path]
        return rename_key(f"{path}.weight", self._table).removesuffix(".weight")


class _BlockView:
    """A block whose layers go by other names; the class of a view has the name of the block's."""

    def __init__(self, block: nn.Module, names: Mapping[str, str]):
        self._block = block
        self._names = names

    def __getattr__(self, name: str) -> Any:
        return getattr(self._block, name)

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        for path, module in self._block.named_modules(*args, **kwargs):
            yield self._names.get(path, path), module
