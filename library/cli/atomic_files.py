"""Files that are either whole or not there: written beside their target, flushed, then moved over it."""

from __future__ import annotations

import os
import secrets
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
