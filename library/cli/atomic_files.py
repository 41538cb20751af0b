"""Files and folders that are either whole or not there: written beside their target, flushed, then moved over it."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_REPLACE_ATTEMPTS = 6
_FIRST_WAIT_SECONDS = 0.05


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a temporary path in the folder of `path`, with its suffix; on leaving, moves what is there to `path`.

    If the block raises, the temporary file is removed and a file that stood at `path` stays as it was. The name begins
    with a dot and does not contain that of `path`, so that a name of full length stays possible.
    """
    target = Path(path)
    temporary = target.with_name(f".tmp-{secrets.token_hex(8)}{target.suffix}")
    try:
        yield temporary
        _flush_to_disk(temporary)
        _replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a temporary folder beside `path`, to be filled; on leaving, it takes the place of what is at `path`.

    A folder cannot be replaced in one go: `restore_folder` mends what a kill between two renames leaves behind. If the
    block raises, the temporary folder is removed and a folder that stood at `path` stays as it was.
    """
    target = Path(path)
    restore_folder(target)
    for left_by_a_kill in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        shutil.rmtree(left_by_a_kill, ignore_errors=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush_to_disk(file)
        old = _set_aside(target)
        if target.exists():
            os.replace(target, old)
        os.replace(temporary, target)
    except (Exception, KeyboardInterrupt):
        shutil.rmtree(temporary, ignore_errors=True)
        restore_folder(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def restore_folder(path: str | os.PathLike[str]) -> None:
    """Puts back the folder at `path` that a kill set aside while it was being replaced; else does nothing."""
    target = Path(path)
    old = _set_aside(target)
    if old.is_dir() and target.exists():
        shutil.rmtree(old, ignore_errors=True)
    elif old.is_dir():
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            os.replace(old, target)


def set_aside_targets(folder: str | os.PathLike[str]) -> list[Path]:
    """The folders in `folder` that `restore_folder` has something to do for."""
    parent = Path(folder)
    return [parent / path.name[1 : -len(".old")] for path in parent.glob(".*.old") if path.is_dir()]


def remove_whole(path: Path) -> None:
    """Removes a file or folder; of a folder nothing is left that could be taken for a whole one."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    leaving = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    os.replace(path, leaving)
    shutil.rmtree(leaving, ignore_errors=True)


def _set_aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _flush_to_disk(path: Path) -> None:
    with open(path, "rb+") as file:  # Windows flushes only what is open for writing
        os.fsync(file.fileno())


def _replace(source: Path, target: Path) -> None:
    """`os.replace`, patient with virus scanners and viewers that hold a file open on Windows for a moment."""
    wait = _FIRST_WAIT_SECONDS
    for _ in range(_REPLACE_ATTEMPTS - 1):
        try:
            os.replace(source, target)
            return
        except PermissionError:
            time.sleep(wait)
            wait *= 2
    os.replace(source, target)
