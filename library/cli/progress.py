"""Progress bars that keep log lines readable, on a terminal and in a log file."""

from __future__ import annotations

import sys

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0  # in a log file, where every update is a line


def progress_bar(total: int, title: str, *, initial: int = 0, is_quiet: bool = False) -> tqdm:
    """A progress bar on standard error; `is_quiet` disables it."""
    interval = 0.1 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES
    return tqdm(total=total, desc=title, initial=initial, disable=is_quiet, mininterval=interval, maxinterval=interval)
