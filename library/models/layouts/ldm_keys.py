"""Keys of files in the Stability (LDM) layout, and sizes inferred from the shapes of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd

import torch

from library.cli.errors import UserError
from library.models.weights.lazy_tensors import renamed
from library.models.weights.module_weights import lacking_keys_error

_USUAL_NORM_GROUPS = 32


@dataclass(frozen=True)
class Section:
    """One part of a file: its tensors, keys without `prefix`; `source` and `part` ("U-Net") are for messages."""

    source: str
    part: str
    prefix: str
    tensors: Mapping[str, torch.Tensor]

    def shape(self, key: str, *, num_dims: int) -> tuple[int, ...]:
        """The shape of a tensor; raises `UserError` when it is missing or has another number of dimensions."""
        if key not in self.tensors:
            raise lacking_keys_error(self.source, self.part, [self.prefix + key])
        shape = tuple(self.tensors[key].shape)
        if len(shape) != num_dims:
            raise UserError(
                f"{self.source}: {self.part}: {self.prefix}{key} has the shape {shape}, not {num_dims} dimensions",
                "the file is damaged, or not a model of a known family",
            )
        return shape

    def count(self, prefix: str) -> int:
        """One more than the largest index behind `prefix`, such as the number of layers; 0 when there is none."""
        levels = {key[len(prefix) :].split(".", 1)[0] for key in self.tensors if key.startswith(prefix)}
        return max((int(level) for level in levels if level.isdigit()), default=-1) + 1


def section_of(
    tensors: Mapping[str, torch.Tensor], prefix: str, *, source: str, part: str, ignored: tuple[str, ...] = ()
) -> Section:
    """The part of a file below `prefix`, without what begins with one of `ignored` after it."""
    names = [key[len(prefix) :] for key in tensors if key.startswith(prefix)]
    kept = {name: prefix + name for name in names if not name.startswith(ignored)}
    return Section(source, part, prefix, renamed(tensors, kept))


@dataclass(frozen=True)
class TensorSlice:
    """Where a tensor is in a file: all of `key`, or one `third` (0, 1, 2) of it along dimension 0, or its transpose."""

    key: str
    third: int | None = None
    is_transposed: bool = False

    def take(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """That tensor, as a view."""
        tensor = tensors[self.key].T if self.is_transposed else tensors[self.key]
        return tensor if self.third is None else tensor.tensor_split(3)[self.third]


def rename_key(key: str, modules: Mapping[str, str]) -> str:
    """Replaces the longest prefix of `key` that is a module in the table; without one the key is unchanged."""
    levels = key.split(".")
    for length in range(len(levels) - 1, 0, -1):
        prefix = ".".join(levels[:length])
        if prefix in modules:
            return ".".join([modules[prefix], *levels[length:]])
    return key


def norm_groups(channels: Sequence[int]) -> int:
    """Groups of the group norms, which are not in the weights: 32, or the largest divisor of 32 that divides all."""
    return gcd(_USUAL_NORM_GROUPS, *channels)
