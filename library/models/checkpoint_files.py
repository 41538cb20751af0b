"""Reads files of weights: .safetensors and PyTorch's pickles, the latter without running anything in them."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from library.cli.errors import UserError
from library.models.path_checks import PICKLE_ENDINGS, SAFETENSORS_ENDING, weight_file_problem

_DOWNLOAD_AGAIN = "copy or download it again"


@dataclass(frozen=True)
class WeightFile:
    """An opened file of weights. Tensors are views of the mapped file: copy what is to be kept."""

    path: Path
    tensors: Mapping[str, torch.Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)


class _MappedTensors(Mapping[str, torch.Tensor]):
    """The tensors of a .safetensors file, mapped when asked for."""

    def __init__(self, handle: Any):
        self._handle = handle
        self._keys = dict.fromkeys(handle.keys())

    def __getitem__(self, key: str) -> torch.Tensor:
        if key not in self._keys:
            raise KeyError(key)
        return self._handle.get_tensor(key)

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def open_weights(path: Path) -> WeightFile:
    """Opens a file of weights on the CPU, in the precision it is stored in.

    Raises `UserError` for a file that is missing, cut off, of another kind, or a pickle that holds more than tensors.
    """
    ending = path.suffix.lower()
    if not path.is_file():
        raise UserError(f"{path}: there is no such file", "check the path")
    problem = weight_file_problem(path)
    if problem is not None:
        raise UserError(f"{path} {problem}", _DOWNLOAD_AGAIN)
    if ending == SAFETENSORS_ENDING:
        return _open_safetensors(path)
    if ending in PICKLE_ENDINGS:
        return _open_pickle(path)
    known = ", ".join((SAFETENSORS_ENDING, *PICKLE_ENDINGS))
    raise UserError(f"{path}: unknown kind of file {path.suffix or '(no ending)'!r}", f"known endings: {known}")


def _open_safetensors(path: Path) -> WeightFile:
    try:
        handle = safe_open(path, framework="pt", device="cpu")
        return WeightFile(path, _MappedTensors(handle), dict(handle.metadata() or {}))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {error}", _DOWNLOAD_AGAIN) from error


def _open_pickle(path: Path) -> WeightFile:
    is_zip = zipfile.is_zipfile(path)
    with open(path, "rb") as file:
        if not is_zip and file.read(2) == b"PK":
            # the list of contents stands at the end of a zip file
            raise UserError(f"{path} is cut off: its list of contents is missing", _DOWNLOAD_AGAIN)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise _refusal(path, error) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, IndexError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {_first_line(error)}", _DOWNLOAD_AGAIN) from error
    return WeightFile(path, _tensors_in(path, loaded))


def _refusal(path: Path, error: pickle.UnpicklingError) -> UserError:
    needed = re.search(r"(?:GLOBAL|Unsupported class) (\S+)", str(error))
    if needed is None:
        return UserError(f"{path} cannot be read: it is cut off or not a PyTorch file", _DOWNLOAD_AGAIN)
    return UserError(
        f"{path} is refused: beside tensors it holds code or objects ({needed.group(1)}), which could do anything",
        "use a .safetensors version of the model",
    )


def _tensors_in(path: Path, loaded: Any) -> dict[str, torch.Tensor]:
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    tensors = {}
    if isinstance(loaded, Mapping):
        tensors = {key: value for key, value in loaded.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise UserError(f"{path} holds no tensors", "give a file of model weights")
    return tensors


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
