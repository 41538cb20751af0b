"""Tensors that are read on access and not kept, so that a model is never in memory twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn


class LazyTensors(Mapping[str, torch.Tensor]):
    """A mapping of names to tensors, each read or computed on access."""

    def __init__(self, readers: Mapping[str, Callable[[], torch.Tensor]]):
        self._readers = dict(readers)

    def __getitem__(self, key: str) -> torch.Tensor:
        return self._readers[key]()

    def __contains__(self, key: object) -> bool:
        return key in self._readers

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def renamed(tensors: Mapping[str, torch.Tensor], names: Mapping[str, str]) -> LazyTensors:
    """`tensors` under other names: `names` maps each new name to the old one; others are dropped."""
    return LazyTensors({new: _Item(tensors, old) for new, old in names.items()})


class _Item:
    """One tensor of a mapping, read on each call."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], key: str):
        self._tensors = tensors
        self._key = key

    def __call__(self) -> torch.Tensor:
        return self._tensors[self._key]


class UnreadTensor:
    """Stands for a floating-point tensor that is read or computed when its values are used, and not kept.

    It has of a tensor's interface what files of weights are written by (`weight_writing`); `.to()` is the way to its
    values.
    """

    def __init__(self, read: Callable[[], torch.Tensor], shape: torch.Size):
        self._read = read
        self.shape = shape
        self.dtype = torch.float32
        self.device = torch.device("cpu")

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def T(self) -> UnreadTensor:  # noqa: N802 - the name that tensors have it under
        return UnreadTensor(lambda: self._read().reshape(self.shape).T, torch.Size(self.shape[::-1]))

    def dim(self) -> int:
        return len(self.shape)

    def is_floating_point(self) -> bool:
        return True

    def detach(self) -> UnreadTensor:
        return self

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self._read().reshape(self.shape).to(*args, **kwargs)

    def isinf(self) -> torch.Tensor:
        return self._read().isinf()


def leave_unread(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Makes the state_dict of a module on the device "meta" hold tensors that are read when they are used.

    `tensors`: by their names in the module. What is not on "meta" in the state_dict stays as it is.
    """

    def give_unread(module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
        for name in tensors:
            found = state.get(prefix + name)
            if isinstance(found, torch.Tensor) and found.is_meta:
                state[prefix + name] = UnreadTensor(partial(tensors.__getitem__, name), found.shape)

    module.register_state_dict_post_hook(give_unread)
