"""What reading the data says, kept for the page."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_PACKAGE = "library.data"


@dataclass(frozen=True)
class Message:
    """A warning, and what it is about, one by one, where the log only has room for a summary."""

    text: str
    details: tuple[str, ...] = ()


class _WarningCollector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[Message] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(Message(record.getMessage(), tuple(getattr(record, "details", ()))))


@contextmanager
def kept_warnings() -> Iterator[list[Message]]:
    """Gives a list that fills with the warnings of this room while the block runs; they are logged as well."""
    collector = _WarningCollector()
    logger = logging.getLogger(_PACKAGE)
    logger.addHandler(collector)
    try:
        yield collector.messages
    finally:
        logger.removeHandler(collector)
