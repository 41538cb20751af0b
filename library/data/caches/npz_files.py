""".npz files of cached arrays: reading them, and what each of their entries was made from.

An entry is what a suffix of array names stands for, such as `7x9` in `latents_7x9`. What the entries were made from is
a member `made_from.json` beside the arrays, a JSON object by entry; NumPy gives it as bytes. Files of earlier versions
have a text array `made_from_<entry>` for each instead, which becomes part of the JSON when the file is next written.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from library.cli.atomic_files import atomic_path, temporary_target
from library.cli.damaged_files import DAMAGED_FILE_ERRORS

MADE_FROM = "made_from.json"

_OLD_MADE_FROM = "made_from_"
_MOST_LOCK_SECONDS = 30  # a file is written in milliseconds: who holds a lock longer has been stopped
_LOCK_WAIT_SECONDS = 0.005
_LEFTOVER_SECONDS = 3600
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # of np.savez and np.savez_compressed

Facts = dict[str, Any]


@contextmanager
def opened_arrays(path: str | os.PathLike[str]) -> Iterator[np.lib.npyio.NpzFile]:
    """The arrays of an .npz file by name, each read when asked for.

    Raises `FileNotFoundError`, and one of `DAMAGED_FILE_ERRORS` for a corrupt file, in the block too.
    """
    file = np.load(path, allow_pickle=False)
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError("a single array, not an .npz file")
    with file:
        assert file.zip is not None  # the file is open
        # other compressions, which a corrupt file can seem to have, raise errors of optional modules
        if any(info.compress_type not in _COMPRESSIONS for info in file.zip.infolist()):
            raise ValueError("unknown compression")
        yield file


def array_names(archive: zipfile.ZipFile) -> set[str]:
    """The names of the arrays in an .npz file."""
    return {name.removesuffix(".npy") for name in archive.namelist()}


def read_made_from(archive: zipfile.ZipFile, names: set[str], entry: str) -> Facts | None:
    """What an entry of an .npz file was made from, None if the file does not say; `names`: as of `array_names`.

    Raises one of `DAMAGED_FILE_ERRORS` if that is corrupt.
    """
    if _OLD_MADE_FROM + entry in names:
        facts = _json_of_array(archive, _OLD_MADE_FROM + entry)
    elif MADE_FROM in names:
        facts = _object(_json_member(archive)).get(entry)
    else:
        return None
    return None if facts is None else _object(facts)


def _json_member(archive: zipfile.ZipFile) -> Any:
    try:
        return json.loads(archive.read(MADE_FROM))
    except KeyError:  # a program that copied all members with NumPy has made an array of it
        return _json_of_array(archive, MADE_FROM)


def _json_of_array(archive: zipfile.ZipFile, name: str) -> Any:
    return json.loads(np.lib.format.read_array(io.BytesIO(archive.read(f"{name}.npy")), allow_pickle=False).item())


def _object(value: Any) -> Facts:
    if not isinstance(value, dict):
        raise ValueError(f"{MADE_FROM} is not an object")
    return value


@dataclass
class StoredArrays:
    """All of an .npz file of cached arrays."""

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    made_from: dict[str, Facts] = field(default_factory=dict)  # by entry


def read_stored(path: Path) -> StoredArrays:
    """The content of a file; nothing if there is none or it is corrupt."""
    with contextlib.suppress(*DAMAGED_FILE_ERRORS), opened_arrays(path) as file:
        assert file.zip is not None
        names = array_names(file.zip)
        made_from = dict(_object(_json_member(file.zip))) if MADE_FROM in names else {}
        for name in names:
            if name.startswith(_OLD_MADE_FROM):
                entry = name.removeprefix(_OLD_MADE_FROM)
                made_from[entry] = read_made_from(file.zip, names, entry) or {}
        arrays = {name: file[name] for name in file if name != MADE_FROM and not name.startswith(_OLD_MADE_FROM)}
        return StoredArrays(arrays, made_from)
    return StoredArrays()


@contextmanager
def locked_folder(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keeps other processes from changing cache files of a folder: one that adds an entry writes the others again.

    Where folders cannot be locked (Windows, some network drives), a process can lose the entry of another, which is
    made again when it is needed.
    """
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    deadline = time.monotonic() + _MOST_LOCK_SECONDS
    try:
        while time.monotonic() < deadline:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_LOCK_WAIT_SECONDS)
            except OSError:
                break
        yield
    finally:
        os.close(descriptor)  # and with it the lock


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Removes what a kill while caching has left in a folder, if it is too old to be another run's."""
    with contextlib.suppress(OSError), os.scandir(folder or ".") as entries:
        names = [each.name for each in entries if each.name.endswith(".npz") and temporary_target(each.name) == ""]
        for name in names:
            path = Path(folder, name)
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _LEFTOVER_SECONDS:
                    path.unlink()


def write_stored(path: Path, arrays: Mapping[str, Any], made_from: Mapping[str, Facts]) -> None:
    """Writes a file, replacing the one at `path` atomically. Raises `OSError`."""
    with atomic_path(path) as temporary, open(temporary, "w+b") as file:
        np.savez(file, **arrays)
        entry = zipfile.ZipInfo(MADE_FROM)  # with the date that NumPy's have: equal content makes equal files
        entry.external_attr = 0o600 << 16
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr(entry, json.dumps(made_from, sort_keys=True))
