"""Atomic writing of files and folders: written beside the target, flushed to disk, then moved over it."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_REPLACE_ATTEMPTS = 6
_FIRST_WAIT_SECONDS = 0.05
_TEMPORARY_FILE = re.compile(r"\.tmp-[0-9a-f]{16}(\.\w+)?")
_TEMPORARY_FOLDER = re.compile(r"\.(?P<target>.+)\.(?P<pid>\d+)\.tmp", re.DOTALL)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path`, with its suffix; at the end, moves the file to `path`.

    If the block raises, the temporary file is removed and a file at `path` is unchanged. The name begins with a dot and
    does not contain that of `path`, so that names of maximum length work.
    """
    target = Path(path)
    temporary = target.with_name(f".tmp-{os.urandom(8).hex()}{target.suffix}")
    try:
        yield temporary
        _flush_to_disk(temporary)
        _replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush_folder(target.parent)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary folder beside `path`, to be filled; at the end, it replaces the folder at `path`.

    A folder cannot be replaced in one operation: `restore_folder` repairs what a kill between the two renames leaves.
    If the block raises, the temporary folder is removed and a folder at `path` is unchanged.
    """
    target = Path(path)
    restore_folder(target)
    for left_by_a_kill in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        parts = _TEMPORARY_FOLDER.fullmatch(left_by_a_kill.name)
        if parts is not None and parts["target"] == target.name and not _is_running(int(parts["pid"])):
            shutil.rmtree(left_by_a_kill, ignore_errors=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for each in [*temporary.rglob("*"), temporary]:
            if each.is_dir():
                _flush_folder(each)
            else:
                _flush_to_disk(each)
        old = _set_aside(target)
        if target.exists():
            _replace(target, old)
        _replace(temporary, target)
    except (Exception, KeyboardInterrupt):
        shutil.rmtree(temporary, ignore_errors=True)
        restore_folder(target)
        raise
    _flush_folder(target.parent)  # before what it replaces is gone
    shutil.rmtree(old, ignore_errors=True)


def temporary_target(name: str) -> str | None:
    """Which folder a temporary name of this program stands for; "" for that of a file, None for any other name."""
    if _TEMPORARY_FILE.fullmatch(name):
        return ""
    parts = _TEMPORARY_FOLDER.fullmatch(name)
    return None if parts is None else parts["target"]


def restore_folder(path: str | os.PathLike[str]) -> None:
    """Restores the folder at `path` if a kill interrupted its replacement; else does nothing."""
    target = Path(path)
    old = _set_aside(target)
    if old.is_dir() and target.exists():
        shutil.rmtree(old, ignore_errors=True)
    elif old.is_dir():
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            _replace(old, target)


def set_aside_targets(folder: str | os.PathLike[str]) -> list[Path]:
    """The folders in `folder` that `restore_folder` has to restore."""
    parent = Path(folder)
    return [parent / path.name[1 : -len(".old")] for path in parent.glob(".*.old") if path.is_dir()]


def remove_whole(path: Path) -> None:
    """Removes a file or folder; an interrupted removal leaves no folder under this name."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    renamed = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    _replace(path, renamed)
    _flush_folder(path.parent)
    shutil.rmtree(renamed, ignore_errors=True)


def _set_aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _flush_to_disk(path: Path) -> None:
    with open(path, "rb+") as file:  # Windows flushes only what is open for writing
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    """Makes the names in a folder last, where the system can: Windows opens no folders, some file systems refuse."""
    with contextlib.suppress(OSError):
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _is_running(pid: int) -> bool:
    """Whether another process of this machine has this number; on Windows, which has no harmless way to ask, none."""
    if pid == os.getpid() or sys.platform == "win32":
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _replace(source: Path, target: Path) -> None:
    """`os.replace` with retries, for virus scanners and viewers that briefly hold a file open on Windows.

    A folder cannot be renamed there while one of its files is open.
    """
    wait = _FIRST_WAIT_SECONDS
    for _ in range(_REPLACE_ATTEMPTS - 1):
        try:
            os.replace(source, target)
            return
        except PermissionError:
            time.sleep(wait)
            wait *= 2
    os.replace(source, target)
