"""The header of a .safetensors file: its tensors and their offsets. Standard library only, so that it is fast.

Format: 8 bytes little-endian length, that many bytes of JSON, then the data of all tensors without gaps.
"""

from __future__ import annotations

import json
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_ITEM_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
}  # fmt: skip


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file; `start` and `end` are offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class SafetensorsHeader:
    """The tensors and the metadata of a file."""

    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]


class HeaderError(ValueError):
    """What is wrong with a file, as a phrase that follows its name: "is cut off: ..."."""


def read_header(path: Path) -> SafetensorsHeader:
    """Reads and checks the header, against the size of the file too. Raises `HeaderError` and `OSError`."""
    size = os.stat(path).st_size
    if size == 0:
        raise HeaderError("is empty (0 bytes)")
    if size < 8:
        raise HeaderError(f"is cut off: {size} bytes, not even the length of its header")
    with open(path, "rb") as file:
        (header_size,) = struct.unpack("<Q", file.read(8))
        if header_size > _MAX_HEADER_BYTES:
            raise HeaderError("is not a safetensors file: its first 8 bytes are not the length of a header")
        if header_size > size - 8:
            raise HeaderError(f"is cut off within its header: {size} bytes, the header alone has {8 + header_size}")
        text = file.read(header_size)
    try:
        document = json.loads(text)
        metadata = document.pop("__metadata__", {})
        tensors = {name: _entry(entry, 8 + header_size) for name, entry in document.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise HeaderError("is not a safetensors file: its header cannot be read") from None
    _check(tensors, 8 + header_size, size)
    return SafetensorsHeader(tensors, {str(key): str(value) for key, value in dict(metadata or {}).items()})


def _entry(entry: dict[str, Any], data_start: int) -> TensorEntry:
    start, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(type(number) is int and number >= 0 for number in (start, end, *shape)):
        raise ValueError
    return TensorEntry(str(entry["dtype"]), shape, data_start + start, data_start + end)


def _check(tensors: dict[str, TensorEntry], data_start: int, size: int) -> None:
    position = data_start
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.dtype not in _ITEM_BITS:
            raise HeaderError(f"holds an unknown data type: {name} is {entry.dtype}")
        num_bytes = math.prod(entry.shape) * _ITEM_BITS[entry.dtype] // 8
        if entry.start != position or entry.end - entry.start != num_bytes:
            raise HeaderError(f"is damaged: its header contradicts itself at {name}")
        position = entry.end
    if size < position:
        raise HeaderError(f"is cut off: {size} bytes where its header describes {position}")
    if size > position:
        raise HeaderError(f"is damaged: {size} bytes where its header describes {position}")
