"""Warnings of reading the data, kept for the dataset report; progress bars between the lines of a log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

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


class _WarningCollector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[Message] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(Message(record.getMessage(), tuple(getattr(record, "details", ()))))


@contextmanager
def kept_warnings() -> Iterator[list[Message]]:
    """Yields a list that receives the warnings of `library.data` inside the block; they are logged as well."""
    collector = _WarningCollector()
    logger = logging.getLogger(_PACKAGE)
    logger.addHandler(collector)
    try:
        yield collector.messages
    finally:
        logger.removeHandler(collector)


def progress_bar(total: int, title: str, *, initial: int = 0, is_quiet: bool = False) -> tqdm:
    """A progress bar on standard error; `is_quiet` disables it."""
    from tqdm import tqdm

    interval = 0.1 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES
    return tqdm(total=total, desc=title, initial=initial, disable=is_quiet, mininterval=interval, maxinterval=interval)
