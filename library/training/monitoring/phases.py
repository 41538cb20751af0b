"""What a run spends its time on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class PhaseTotal:
    """Seconds of a phase, without those of phases within it, and the most memory held by its end."""

    seconds: float = 0.0
    peak_gib: float = 0.0


class PhaseTimes:
    """Wall time by phase; of nested phases the inner one counts."""

    def __init__(self, peak: Callable[[], float], clock: Callable[[], float] = time.perf_counter):
        """`peak`: the most memory held so far, in GiB."""
        self._peak = peak
        self._clock = clock
        self._open: list[str] = []
        self._since = 0.0
        self.totals: dict[str, PhaseTotal] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.take()
        self._open.append(name)
        self.totals.setdefault(name, PhaseTotal())
        try:
            yield
        finally:
            self.take()
            self._open.pop()

    def take(self) -> None:
        """Counts what has passed of the phase that is open now."""
        now = self._clock()
        if self._open:
            total = self.totals[self._open[-1]]
            total.seconds += now - self._since
            total.peak_gib = max(total.peak_gib, self._peak())
        self._since = now
