"""What the header of a LoRA or an embedding shows of the kind of model that it was made for. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from library.models.weights.model_files import HasShape, TensorFile

# the inputs of layers that take text, in U-Nets by Diffusers' names and by those of the Stability layout
_IN_UNET = r"(?:down|up|mid|input|output|middle)_blocks?[._].*"
_TAKES_TEXT = re.compile(
    _IN_UNET + r"attn2[._]to_[kv]"
    r"\.(?:lora_down\.weight|lora_A\.(?:\w+\.)?weight|lora\.down\.weight|hada_w1_b)$"
)
_DEEP_BLOCK = re.compile(_IN_UNET + r"transformer_blocks[._][1-9]")
_TABLES = ("clip_l", "clip_g", "emb_params")
_PARAMETERS = "string_to_param."


@dataclass(frozen=True)
class BaseSigns:
    """The names of a file's tensors, and what shapes and metadata say; None where they do not.

    `text_width`: of the text that the U-Net takes. `tables`: widths of an embedding's vectors, by token table.
    `version`: the entry `ss_base_model_version`.
    """

    names: tuple[str, ...]
    text_width: int | None = None
    tables: Mapping[str, int] = field(default_factory=dict)
    version: str = ""

    def has(self, *beginnings: str) -> bool:
        """Whether a tensor's name begins so."""
        return any(name.startswith(beginnings) for name in self.names)

    def says_version(self, beginning: str) -> bool:
        """Whether the metadata names such a version; shapes count for more."""
        return self.text_width is None and self.version.startswith(beginning)

    @cached_property
    def has_deep_blocks(self) -> bool:
        """Whether a transformer of the U-Net has more than one block."""
        return any(_DEEP_BLOCK.search(name) for name in self.names)


def base_signs(file: TensorFile) -> BaseSigns:
    """The signs in a header."""
    widths = {_last(tensor) for name, tensor in file.tensors.items() if _TAKES_TEXT.search(name)}
    tables = {
        "emb_params" if name.startswith(_PARAMETERS) else name: _last(tensor)
        for name, tensor in file.tensors.items()
        if name in _TABLES or name.startswith(_PARAMETERS)
    }
    version = file.metadata.get("ss_base_model_version", "")
    return BaseSigns(tuple(file.tensors), widths.pop() if len(widths) == 1 else None, tables, version)


def _last(tensor: HasShape) -> int:
    """Of (rank, in), and of (rank, in, 1, 1) where projections are convolutions; (vectors, width)."""
    shape = [size for size in tensor.shape if size != 1] or [1]
    return shape[-1]
