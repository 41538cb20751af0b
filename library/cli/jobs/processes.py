"""Work shared by the processes of `accelerate launch` or `torchrun`: each has its share, and all hear of all results.

They talk through the launcher's key-value store, which works between machines too. PyTorch, which has its client, is
imported only where there are several processes.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from library.cli.launcher import is_launched

if TYPE_CHECKING:
    from torch.distributed import Store

T = TypeVar("T")

_LONGEST_WAIT = timedelta(days=30)  # for a slower process; the launcher ends all when one dies
_PART_LENGTH = 2**22  # bytes: the store takes 8 MiB at most


def rank_and_count() -> tuple[int, int]:
    """The rank of this process, and the number of processes."""
    return (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])) if is_launched() else (0, 1)


def own_share(items: Sequence[T]) -> Sequence[T]:
    """What this process has to do of `items`, which are the same in all processes."""
    rank, count = rank_and_count()
    return items[rank::count]


class Exchange:
    """Hands the values of each process to all. Every process calls `all_values` equally often."""

    def __init__(self) -> None:
        self._store: Store | None = None
        self._num_calls = 0

    def all_values(self, value: T) -> list[T]:
        """The values of all processes, by rank, once the last has come here."""
        rank, count = rank_and_count()
        if count == 1:
            return [value]
        store = self._connect()
        self._num_calls += 1
        _put(store, f"{self._num_calls}/{rank}", value)
        values = [_get(store, f"{self._num_calls}/{each}") for each in range(count)]
        self._wait_for_readers(store, rank, count)
        return values

    def _connect(self) -> Store:
        if self._store is None:
            from torch.distributed import rendezvous

            self._store, _, _ = next(rendezvous("env://", timeout=_LONGEST_WAIT))
        return self._store

    def _wait_for_readers(self, store: Store, rank: int, count: int) -> None:
        """The first process may hold the store: it stays until all have read."""
        store.set(f"{self._num_calls}/read/{rank}", "")
        if rank == 0:  # the others may not ask any more: the store is gone with the first
            store.wait([f"{self._num_calls}/read/{each}" for each in range(count)], _LONGEST_WAIT)


def _put(store: Store, key: str, value: Any) -> None:
    parts = list(_parts(pickle.dumps(value)))
    for number, part in enumerate(parts):
        store.set(f"{key}/{number}", part)  # type: ignore[arg-type]  # it takes bytes too
    store.set(key, str(len(parts)))


def _get(store: Store, key: str) -> Any:
    store.wait([key], _LONGEST_WAIT)
    return pickle.loads(b"".join(store.get(f"{key}/{number}") for number in range(int(store.get(key)))))


def _parts(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), _PART_LENGTH):
        yield data[start : start + _PART_LENGTH]
