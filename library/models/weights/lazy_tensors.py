"""Tensors that are read on access and not kept, so that a model is never in memory twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch


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
