"""Progress bars that leave log lines readable, on a terminal and in a log file."""

from __future__ import annotations

import sys

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0  # where every update is a line of a file


def progress_bar(total: int, title: str, *, initial: int = 0, is_quiet: bool = False) -> tqdm:
    """A bar on standard error; quiet ones show nothing."""
    interval = 0.1 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES
    return tqdm(total=total, desc=title, initial=initial, disable=is_quiet, mininterval=interval, maxinterval=interval)
