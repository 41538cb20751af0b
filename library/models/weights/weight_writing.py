"""Writes files of weights tensor by tensor, so that saving needs no second copy of a model in memory."""

from __future__ import annotations

import hashlib
import json
import logging
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError

from library.cli.documents import valid_metadata
from library.cli.errors import first_line, listed, plural

logger = logging.getLogger(__name__)

HASH_ENTRY = "modelspec.hash_sha256"
_NO_HASH = "0x" + "0" * 64
_TYPE_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}
_HEADER_ALIGNMENT = 8


@dataclass(frozen=True)
class StoredTensor:
    """A tensor for a file, made when it is written: `pieces` concatenated, in the given shape and data type."""

    pieces: tuple[torch.Tensor, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype

    def make(self) -> torch.Tensor:
        """The tensor, on the CPU; copied only if needed."""
        pieces = [piece.detach().to("cpu", self.dtype) for piece in self.pieces]
        whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return whole.reshape(self.shape).contiguous()

    def num_overflows(self, made: torch.Tensor) -> int:
        """How many finite values became infinite in `made`, whose data type has a smaller range."""
        if all(piece.dtype == made.dtype for piece in self.pieces) or not bool(made.isinf().any()):
            return 0
        return int(made.isinf().sum()) - sum(int(piece.isinf().sum()) for piece in self.pieces)

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def stored(tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...] | None = None) -> StoredTensor:
    """A tensor to be stored as `dtype` (integers keep theirs), in `shape` if that is given."""
    kept = dtype if tensor.is_floating_point() else tensor.dtype
    return StoredTensor((tensor,), tuple(tensor.shape) if shape is None else shape, kept)


def write_safetensors(path: Path, tensors: Mapping[str, StoredTensor], metadata: Mapping[str, str]) -> None:
    """Writes a .safetensors file, with one converted tensor in memory at a time.

    The layout of the format: the length of the header (8 bytes), the header (JSON, padded with
    spaces), the data without gaps. Wide data types come first, so that all are aligned. `modelspec.hash_sha256`, the
    SHA-256 of the data, is added; it is known at the end, so the header is written again then, with the same length.
    Raises `OSError` when the file cannot be written.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    entries: dict[str, Any] = {}
    offset = 0
    for name in names:
        end = offset + tensors[name].num_bytes
        entries[name] = {
            "dtype": _TYPE_NAMES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [offset, end],
        }
        offset = end
    with open(path, "wb") as file:
        # older versions of transformers require "format"
        texts = {"format": "pt", **valid_metadata(metadata)}
        _write_header(file, {**texts, HASH_ENTRY: _NO_HASH}, entries)
        digest = hashlib.sha256()
        overflows = {}
        for name in names:
            made = tensors[name].make()
            overflows[name] = tensors[name].num_overflows(made)
            data = made.reshape(-1).view(torch.uint8).numpy().data
            digest.update(data)
            file.write(data)
        file.seek(0)
        _write_header(file, {**texts, HASH_ENTRY: f"0x{digest.hexdigest()}"}, entries)
    _warn_of_overflows(overflows)


def _write_header(file: BinaryIO, metadata: Mapping[str, str], entries: Mapping[str, Any]) -> None:
    header = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _HEADER_ALIGNMENT)
    file.write(struct.pack("<Q", len(header)) + header)


def write_pickle(path: Path, contents: Mapping[str, Any]) -> None:
    """Writes a PyTorch file; `StoredTensor`s in `contents`, at its first or second level, become tensors.

    Tensors that change precision are in memory twice meanwhile: PyTorch writes from tensors in memory.
    Raises `OSError` when the file cannot be written.
    """
    overflows: dict[str, int] = {}
    with write_errors():
        torch.save({key: _made(key, value, overflows) for key, value in contents.items()}, path)
    _warn_of_overflows(overflows)


@contextmanager
def write_errors() -> Iterator[None]:
    """Makes what writers of weights raise for a full disk, among others, the one kind of a failed save: `OSError`."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:  # PyTorch's is the latter
        raise OSError(first_line(error)) from error


def _made(key: str, value: Any, overflows: dict[str, int]) -> Any:
    if isinstance(value, StoredTensor):
        tensor = value.make()
        overflows[key] = value.num_overflows(tensor)
        # PyTorch writes the whole storage of a view
        return tensor if tensor.untyped_storage().nbytes() == value.num_bytes else tensor.clone()
    return (
        {name: _made(name, inner, overflows) for name, inner in value.items()} if isinstance(value, Mapping) else value
    )


def _warn_of_overflows(overflows: Mapping[str, int]) -> None:
    names = [name for name, count in overflows.items() if count]
    if names:
        logger.warning(
            "%s beyond the range of the saved precision and became infinite, in %s: the file will give NaN"
            " (black images); --save_precision bf16 or float keeps them",
            plural(sum(overflows.values()), "weight is", "weights are"),
            listed(names, 3),
        )
