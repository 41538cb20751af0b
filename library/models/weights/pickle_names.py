"""Names and shapes of the tensors in a PyTorch pickle, in milliseconds: no tensor is read, no code in it is run.

A file that `torch.save` wrote is a zip file, in which `data.pkl` names the tensors, whose contents lie in entries of
their own. Standard library only.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from library.cli.damaged_files import DAMAGED_FILE_ERRORS

_MAX_BYTES = 64 << 20  # of the names; those of the largest models take a few megabytes


@dataclass(frozen=True)
class NamedTensor:
    """A tensor that was not read."""

    shape: tuple[int, ...]


class _Opaque:
    """Stands for whatever else a pickle holds: takes any arguments and contents, and does nothing with them."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass


def _named_tensor(storage: Any, offset: int, size: tuple[int, ...], *rest: Any) -> NamedTensor:
    return NamedTensor(tuple(int(number) for number in size))


def _inner(tensor: Any, *rest: Any) -> Any:
    return tensor


_CALLED = {
    ("torch._utils", "_rebuild_tensor_v2"): _named_tensor,
    ("torch._utils", "_rebuild_parameter"): _inner,
    ("collections", "OrderedDict"): OrderedDict,
}


class _Names(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _CALLED.get((module, name), _Opaque)  # nothing is ever imported

    def persistent_load(self, pid: Any) -> Any:
        return None  # a storage


def read_pickle_names(path: Path) -> tuple[dict[str, NamedTensor], dict[str, str]] | None:
    """The tensors of a pickle and its metadata; None for an older kind of file, and for one that is damaged."""
    try:
        with zipfile.ZipFile(path) as file:
            entries = [entry for entry in file.infolist() if entry.filename.endswith("data.pkl")]
            if len(entries) != 1 or entries[0].file_size > _MAX_BYTES:
                return None
            loaded = _Names(io.BytesIO(file.read(entries[0]))).load()
    except DAMAGED_FILE_ERRORS:
        return None
    state = state_in(loaded)
    tensors = {} if not isinstance(state, Mapping) else _named(state) or _named_below(state)
    return (tensors, metadata_in(loaded)) if tensors else None


def _named(state: Mapping[Any, Any], front: str = "") -> dict[str, NamedTensor]:
    return {
        f"{front}{key}": value
        for key, value in state.items()
        if isinstance(key, str) and isinstance(value, NamedTensor)
    }


def _named_below(state: Mapping[Any, Any]) -> dict[str, NamedTensor]:
    """Tensors one level down, as embeddings of textual inversion have them: `string_to_param.*`."""
    groups = [(key, value) for key, value in state.items() if isinstance(value, Mapping)]
    return {name: tensor for key, group in groups for name, tensor in _named(group, f"{key}.").items()}


def state_in(loaded: Any) -> Any:
    """What a loaded pickle holds below `state_dict` or `model`, where it has these."""
    for wrapping in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapping), Mapping):
            loaded = loaded[wrapping]
    return loaded


def metadata_in(loaded: Any) -> dict[str, str]:
    """The metadata that this program writes to .ckpt files (see `layouts.config_metadata`)."""
    found = loaded.get("metadata") if isinstance(loaded, Mapping) else None
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, Mapping) else {}
