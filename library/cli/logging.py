"""Warnings of reading the data, kept for the dataset report; progress bars between the lines of a log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from library.cli.errors import UserError

if TYPE_CHECKING:
    from tqdm import tqdm

_PACKAGE = "library.data"
_OWN = ("library", "networks", "__main__")  # the loggers of this program
SECONDS_BETWEEN_LINES = 10.0  # of a progress bar in a log file, where every update is a line


@dataclass(frozen=True)
class Message:
    """A warning; `details`: the single items of a warning that only summarises them."""

    text: str
    details: tuple[str, ...] = ()


def set_console_level(level: int) -> None:
    """The least level of the lines that this program shows; of other packages only warnings are shown."""
    for name in _OWN:
        logging.getLogger(name).setLevel(level)


def append_lines_to(path: str) -> None:
    """Lines of the log are appended to a file from now on, instead of the console. Raises `UserError`."""
    root = logging.getLogger()
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"--console_log_file {path} cannot be written: {error.strerror or error}", hint="name another file"
        ) from None
    for console in list(root.handlers):
        file.setFormatter(console.formatter)
        root.removeHandler(console)
    root.addHandler(file)


class _WarningCollector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[Message] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(Message(record.getMessage(), tuple(getattr(record, "details", ()))))


@contextmanager
def kept_warnings(*, of_all: bool = False) -> Iterator[list[Message]]:
    """Yields a list that receives the warnings of `library.data` inside the block; they are logged as well.

    `of_all`: those of the whole program.
    """
    collector = _WarningCollector()
    loggers = [logging.getLogger(name) for name in (_OWN if of_all else (_PACKAGE,))]
    for logger in loggers:
        logger.addHandler(collector)
    try:
        yield collector.messages
    finally:
        for logger in loggers:
            logger.removeHandler(collector)


def progress_bar(total: int, title: str, *, initial: int = 0, is_quiet: bool = False) -> tqdm:
    """A progress bar on standard error; `is_quiet` disables it."""
    from tqdm import tqdm

    interval = 0.1 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES
    return tqdm(total=total, desc=title, initial=initial, disable=is_quiet, mininterval=interval, maxinterval=interval)


def duration(seconds: float) -> str:
    """ "42 s", "3 min 5 s", "2 h 14 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
