"""Ctrl-C and SIGTERM: the step is finished and everything saved before the program ends."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether the user, or the system, has asked the run to end."""

    def __init__(self) -> None:
        self.signal_number = 0  # of the signal that came; 0 while there was none

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within it the first signal is noted, and a second one ends the program at once."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals reach the main thread alone
            return
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number:
            # no handler of ours, no clean-up that could hang: files are whole or absent anyway
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.signal_number = number
        logger.warning("%s: finishing the step and saving; once more ends at once", signal.Signals(number).name)


@contextmanager
def signals_end_at_once() -> Iterator[None]:
    """Within it Ctrl-C ends the program at once, whatever threads are at, as SIGTERM does outside of training."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
