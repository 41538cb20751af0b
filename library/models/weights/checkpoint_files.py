"""Reads checkpoint files: .safetensors and PyTorch pickles, the latter without running code in them."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from library.cli.damaged_files import DAMAGED_FILE_ERRORS
from library.cli.errors import UserError, first_line
from library.models.weights.lazy_tensors import LazyTensors
from library.models.weights.path_checks import (
    INDEX_ENDING,
    PICKLE_ENDINGS,
    SAFETENSORS_ENDING,
    read_shards,
    weight_file_problem,
)
from library.models.weights.pickle_names import metadata_in, state_in
from library.models.weights.safetensors_header import HeaderError, TensorEntry, read_header

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_DOWNLOAD_AGAIN = "copy or download it again"


@dataclass(frozen=True)
class WeightFile:
    """An opened file of weights. Tensors may be views of the memory-mapped file: copy what is to be kept."""

    path: Path
    tensors: Mapping[str, torch.Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)


def open_weights(path: Path, *, is_mapped: bool = True) -> WeightFile:
    """Opens a file of weights on the CPU, in the precision it is stored in.

    `is_mapped`: tensors of .safetensors files are memory-mapped; else each is read as a whole on access, which is
    faster from some network drives.

    Raises `UserError` for a file that is missing, cut off, of another kind, or a pickle that holds more than tensors.
    """
    ending = path.suffix.lower()
    if not path.is_file():
        raise UserError(f"{path}: there is no such file", "check the path")
    problem = weight_file_problem(path)
    if problem is not None:
        raise UserError(f"{path} {problem}", _DOWNLOAD_AGAIN)
    if ending == SAFETENSORS_ENDING:
        return _open_safetensors(path, _map_bytes if is_mapped else _read_bytes)
    if ending in PICKLE_ENDINGS:
        return _open_pickle(path)
    if ending == INDEX_ENDING:
        return _joined(path, partial(open_weights, is_mapped=is_mapped))
    known = ", ".join((SAFETENSORS_ENDING, *PICKLE_ENDINGS))
    raise UserError(f"{path}: unknown kind of file {path.suffix or '(no ending)'!r}", f"known endings: {known}")


def open_shapes(path: Path) -> WeightFile:
    """A file of weights with names, shapes and data types only: its tensors are on the device "meta".

    Of a .safetensors file only the header is read. Raises `UserError` as `open_weights` does.
    """
    if path.suffix.lower() == INDEX_ENDING:
        return _joined(path, open_shapes)
    file = open_weights(path)
    if path.suffix.lower() != SAFETENSORS_ENDING:
        return replace(file, tensors={key: torch.empty_like(file.tensors[key], device="meta") for key in file.tensors})
    entries = read_header(path).tensors.items()
    shapes = {key: torch.empty(entry.shape, dtype=_DTYPES[entry.dtype], device="meta") for key, entry in entries}
    return replace(file, tensors=shapes)


def _joined(index: Path, open_shard: Callable[[Path], WeightFile]) -> WeightFile:
    """The tensors of all shards that an index names, as one file."""
    shards = read_shards(index)
    files = {name: open_shard(index.parent / name) for name in dict.fromkeys(shards.values())}
    lacking = [key for key, name in shards.items() if key not in files[name].tensors]
    if lacking:
        raise UserError(f"{index.parent / shards[lacking[0]]} lacks {lacking[0]}", _DOWNLOAD_AGAIN)
    readers = {key: partial(files[name].tensors.__getitem__, key) for key, name in shards.items()}
    return WeightFile(index, LazyTensors(readers), next(iter(files.values())).metadata)


def _open_safetensors(path: Path, get_bytes: Callable[[Path, int, int], torch.Tensor]) -> WeightFile:
    try:
        header = read_header(path)
    except (HeaderError, OSError) as error:
        raise UserError(f"{path} {error}", _DOWNLOAD_AGAIN) from error
    return WeightFile(
        path,
        LazyTensors({name: partial(_get_tensor, get_bytes, path, entry) for name, entry in header.tensors.items()}),
        header.metadata,
    )


def _get_tensor(get_bytes: Callable[[Path, int, int], torch.Tensor], path: Path, entry: TensorEntry) -> torch.Tensor:
    return get_bytes(path, entry.start, entry.end - entry.start).view(_DTYPES[entry.dtype]).reshape(entry.shape)


def _map_zipped(path: Path, empty: torch.Tensor) -> torch.Tensor:
    """A memory-mapped tensor of a zip file; `empty`: the tensor as it was loaded to the device "meta"."""
    storage = empty.untyped_storage()
    offset = storage._checkpoint_offset
    assert offset is not None, "torch.load keeps it for the device meta"
    whole = _map_bytes(path, offset, storage.nbytes()).view(empty.dtype)
    return whole.as_strided(empty.shape, empty.stride(), empty.storage_offset())


def _map_bytes(path: Path, start: int, num_bytes: int) -> torch.Tensor:
    """Memory-mapped bytes of a file, uint8 (num_bytes,); the mapping is freed with the tensor.

    (Libraries map a file as a whole, and so keep in memory all that was read of it.)
    """
    if num_bytes == 0:
        return torch.empty(0, dtype=torch.uint8)
    try:
        # copy-on-write: torch expects writable memory
        mapped = np.memmap(path, dtype=np.uint8, mode="c", offset=start, shape=(num_bytes,))
    except (OSError, ValueError) as error:
        raise _changed_error(path, error) from error
    return torch.from_numpy(mapped)


def _read_bytes(path: Path, start: int, num_bytes: int) -> torch.Tensor:
    """The same without memory mapping."""
    if num_bytes == 0:
        return torch.empty(0, dtype=torch.uint8)
    try:
        found = np.fromfile(path, dtype=np.uint8, count=num_bytes, offset=start)
    except OSError as error:
        raise _changed_error(path, error) from error
    if len(found) < num_bytes:
        raise _changed_error(path, f"{num_bytes - len(found)} bytes of a tensor are missing")
    return torch.from_numpy(found)


def _changed_error(path: Path, what: object) -> UserError:
    return UserError(f"{path} was changed or removed while it was read: {what}", "start again")


def _open_pickle(path: Path) -> WeightFile:
    is_zip = zipfile.is_zipfile(path)
    with open(path, "rb") as file:
        if not is_zip and file.read(2) == b"PK":
            # the list of contents stands at the end of a zip file
            raise UserError(f"{path} is cut off: its list of contents is missing", _DOWNLOAD_AGAIN)
    try:
        # of a zip file only the offsets of tensors are loaded; each is memory-mapped on access
        is_mappable = is_zip and _is_uncompressed(path)
        with torch.serialization.safe_globals([nn.ParameterDict]):  # in the first textual inversion embeddings
            loaded = torch.load(path, map_location="meta" if is_mappable else "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refusal(path, error) from error
    except DAMAGED_FILE_ERRORS as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}", _DOWNLOAD_AGAIN) from error
    tensors: Mapping[str, torch.Tensor] = _tensors_in(path, loaded)
    if is_mappable:
        tensors = LazyTensors({key: partial(_map_zipped, path, tensor) for key, tensor in tensors.items()})
    return WeightFile(path, tensors, metadata_in(loaded))


def _is_uncompressed(path: Path) -> bool:
    """Whether the zip file is uncompressed; PyTorch writes no others, but reads them."""
    try:
        with zipfile.ZipFile(path) as file:
            return all(entry.compress_type == zipfile.ZIP_STORED for entry in file.infolist())
    except zipfile.BadZipFile:
        return False


def _refusal(path: Path, error: pickle.UnpicklingError) -> UserError:
    needed = re.search(r"(?:GLOBAL|Unsupported class) (\S+)", str(error))
    if needed is None:
        return UserError(f"{path} cannot be read: it is cut off or not a PyTorch file", _DOWNLOAD_AGAIN)
    return UserError(
        f"{path} is refused: it is a pickle with code or objects ({needed.group(1)}), which could run anything",
        "use a .safetensors version of the model",
    )


def _tensors_in(path: Path, loaded: Any) -> dict[str, torch.Tensor]:
    state = state_in(loaded)
    tensors = {}
    if isinstance(state, Mapping):
        tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
        tensors = tensors or _tensors_below(state)
    if not tensors:
        raise UserError(f"{path} holds no tensors", "give a file of model weights")
    return tensors


def _tensors_below(loaded: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Tensors one level down, as in textual inversion embeddings: `string_to_param.*`."""
    groups = {key: value for key, value in loaded.items() if isinstance(value, (Mapping, nn.ParameterDict))}
    return {
        f"{key}.{name}": value
        for key, group in groups.items()
        for name, value in group.items()
        if isinstance(value, torch.Tensor)
    }
