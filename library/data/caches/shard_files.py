"""Cache files of shards: the arrays of all images of a shard, as one .safetensors file.

Such a file is written whole or not at all, array by array, and read at random. Its metadata are the facts that all of
it was made from: a file with other facts is not used, and replaced.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from library.cli.atomic_files import atomic_path

ENDING = ".safetensors"

_LENGTH = struct.Struct("<Q")  # of the header
_LONGEST_HEADER = 2**30
_ALIGNMENT = 8
_ITEM_BYTES = 4  # of float32

Facts = Mapping[str, str]


class ShardFileWriter:
    """Writes a cache file of float32 arrays: `add` each, then `finish`. Without that nothing is left behind.

    Raises `OSError`.
    """

    def __init__(self, path: Path, facts: Facts):
        self._path = path
        self._header: dict[str, Any] = {"__metadata__": dict(facts)}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._spool: IO[bytes] = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115 - closed by `close`
        self._end = 0

    def add(self, name: str, array: np.ndarray) -> None:
        contiguous = np.ascontiguousarray(array, dtype="<f4")
        self._add(name, list(array.shape), contiguous.tobytes())

    def copy_others(self, path: Path, is_kept: Callable[[str], bool] = lambda name: True) -> None:
        """Adds what a file with the same facts has beside what was added."""
        with open(path, "rb") as file:
            header = _read_header(file)
            for name, entry in header.arrays.items():
                if name not in self._header and is_kept(name):
                    begin, end = entry["data_offsets"]
                    file.seek(header.data_start + begin)
                    self._add(name, entry["shape"], file.read(end - begin))

    def _add(self, name: str, shape: list[int], data: bytes) -> None:
        self._spool.write(data)
        offsets = [self._end, self._end + len(data)]
        self._header[name] = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
        self._end = offsets[1]

    def finish(self) -> None:
        header = json.dumps(self._header, ensure_ascii=True, separators=(",", ":")).encode()
        header += b" " * (-len(header) % _ALIGNMENT)
        self._spool.seek(0)
        with atomic_path(self._path) as temporary, open(temporary, "wb") as file:
            file.write(_LENGTH.pack(len(header)) + header)
            shutil.copyfileobj(self._spool, file, 2**20)
        self.close()

    def close(self) -> None:
        self._spool.close()


@dataclass(frozen=True)
class _Header:
    facts: dict[str, str]
    arrays: dict[str, Any]  # entries by name
    data_start: int


def _read_header(file: IO[bytes]) -> _Header:
    """Raises `ValueError` for a damaged file."""
    start = file.read(_LENGTH.size)
    length = _LENGTH.unpack(start)[0] if len(start) == _LENGTH.size else _LONGEST_HEADER + 1
    if length > _LONGEST_HEADER:
        raise ValueError("no .safetensors file")
    try:
        arrays = json.loads(file.read(length))
        return _Header(arrays.pop("__metadata__"), arrays, _LENGTH.size + length)
    except (KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"damaged header ({error})") from None


@dataclass(frozen=True)
class _Table:
    """Where the arrays of a file lie: some 20 bytes for each, since a run has as many as images."""

    state: tuple[int, int, int]  # of the file
    facts: dict[str, str]
    digests: np.ndarray  # (arrays,) uint64, of names, sorted
    offsets: np.ndarray  # (arrays,) int64
    shape_indices: np.ndarray  # (arrays,) int32
    shapes: list[tuple[int, ...]]

    def are_there(self, names: Sequence[str]) -> np.ndarray:
        """(names,) bool."""
        digests = _digests(names)
        if not len(self.digests):
            return np.zeros(len(digests), dtype=bool)
        indices = np.searchsorted(self.digests, digests)
        return self.digests[np.minimum(indices, len(self.digests) - 1)] == digests

    def find(self, name: str) -> tuple[int, tuple[int, ...]] | None:
        """Offset and shape of an array."""
        digest = np.uint64(_digest(name))
        index = int(np.searchsorted(self.digests, digest))
        if index == len(self.digests) or self.digests[index] != digest:
            return None
        return int(self.offsets[index]), self.shapes[self.shape_indices[index]]


def _digest(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _digests(names: Collection[str]) -> np.ndarray:
    """(names,) uint64."""
    return np.fromiter(map(_digest, names), dtype=np.uint64, count=len(names))


class ShardFiles:
    """Reads arrays of cache files. Tables of contents are kept, files are not kept open: a run may have thousands."""

    def __init__(self) -> None:
        self._tables: dict[Path, _Table] = {}

    def facts(self, path: Path) -> dict[str, str] | None:
        """The facts of a file; None where there is none. Raises `ValueError` for a damaged one."""
        try:
            with open(path, "rb") as file:
                return self._table(path, file).facts
        except FileNotFoundError:
            return None

    def are_there(self, path: Path, names: Sequence[str]) -> np.ndarray:
        """Which of these arrays a file has whose facts were read: (names,) bool."""
        return self._tables[path].are_there(names)

    def read(self, path: Path, names: Iterable[str], facts: Facts) -> list[np.ndarray] | None:
        """Arrays of a file; None where there is no such file with these facts, or where it lacks one.

        Raises `OSError` or `ValueError` for a damaged file.
        """
        try:
            with open(path, "rb", buffering=0) as file:
                table = self._table(path, file)
                if any(table.facts.get(name) != value for name, value in facts.items()):
                    return None
                found = [table.find(name) for name in names]
                arrays = [_read_array(file, *each) for each in found if each is not None]
        except FileNotFoundError:
            return None
        return arrays if len(arrays) == len(found) else None

    def _table(self, path: Path, file: IO[bytes]) -> _Table:
        """The table of a file, read again where another process has replaced the file."""
        status = os.fstat(file.fileno())
        state = (status.st_ino, status.st_size, status.st_mtime_ns)
        known = self._tables.get(path)
        if known is None or known.state != state:
            self._tables[path] = known = _read_table(file, state)
        return known


def _read_table(file: IO[bytes], state: tuple[int, int, int]) -> _Table:
    header, shapes = _read_header(file), dict[tuple[int, ...], int]()
    digests, entries = _digests(header.arrays), header.arrays.values()
    try:
        offsets = [header.data_start + entry["data_offsets"][0] for entry in entries]
        indices = [shapes.setdefault(tuple(entry["shape"]), len(shapes)) for entry in entries]
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"damaged header ({error})") from None
    order = np.argsort(digests)
    return _Table(
        state,
        header.facts,
        digests[order],
        np.array(offsets, dtype=np.int64)[order],
        np.array(indices, dtype=np.int32)[order],
        list(shapes),
    )


def _read_array(file: IO[bytes], offset: int, shape: tuple[int, ...]) -> np.ndarray:
    file.seek(offset)
    num_bytes = math.prod(shape) * _ITEM_BYTES
    data = file.read(num_bytes)
    if len(data) != num_bytes:
        raise ValueError("the file is truncated")
    return np.frombuffer(bytearray(data), dtype="<f4").reshape(shape)
