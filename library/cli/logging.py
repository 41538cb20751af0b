"""Collects the warnings of reading the data, for the dataset report."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_PACKAGE = "library.data"


@dataclass(frozen=True)
class Message:
    """A warning; `details`: the single items of a warning that only summarises them."""

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
    """Yields a list that receives the warnings of `library.data` inside the block; they are logged as well."""
    collector = _WarningCollector()
    logger = logging.getLogger(_PACKAGE)
    logger.addHandler(collector)
    try:
        yield collector.messages
    finally:
        logger.removeHandler(collector)
