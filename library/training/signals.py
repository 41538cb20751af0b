"""Ctrl-C, SIGTERM and their like: the step is finished and everything saved before the program ends."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from library.cli.launcher import is_launched
from library.data.batches.worker_signals import STOP_SIGNALS

logger = logging.getLogger(__name__)

# `timeout`, a terminal with a launcher and others send one request to a process and to its group: it comes twice
_ECHO_SECONDS = 1.0
_LAUNCHED_ECHO_SECONDS = 5.0  # the launcher passes it on when it gets to it


class StopRequest:
    """Whether the user, or the system, has asked the run to end."""

    def __init__(self) -> None:
        self.signal_number = 0  # of the signal that came; 0 while there was none
        self._came_at = 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within it the first signal is noted, and a second one ends the program at once.

        SIGHUP stays ignored where it is, as by `nohup`.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # signals reach the main thread alone
            return
        nohup = {number for number in STOP_SIGNALS if number.name == "SIGHUP" and _is_ignored(number)}
        before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS if number not in nohup}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.signal_number:
            self.signal_number, self._came_at = number, time.monotonic()
            logger.warning("%s: finishing the step and saving; once more ends at once", signal.Signals(number).name)
        elif time.monotonic() - self._came_at > (_LAUNCHED_ECHO_SECONDS if is_launched() else _ECHO_SECONDS):
            # no handler of ours, no clean-up that could hang: files are whole or absent anyway
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def _is_ignored(number: int) -> bool:
    return signal.getsignal(number) == signal.SIG_IGN


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
