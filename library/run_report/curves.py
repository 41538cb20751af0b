"""Curves that stay small however long a run is, and their smoothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

from library.run_report.record import Points

_MOST_IN_MEMORY = 20_000


class Curve:
    """The points of a curve, in order; thinned out as they come, so that a run of any length fits into memory."""

    def __init__(self, points: Iterable[tuple[int, float]] = ()):
        self.points: Points = list(points)

    def add(self, step: int, value: float) -> None:
        self.points.append((step, value))
        if len(self.points) > _MOST_IN_MEMORY:
            self.points = thinned(self.points, _MOST_IN_MEMORY // 2)


def thinned(points: Sequence[tuple[int, float]], limit: int) -> Points:
    """At most `limit` of the points: the first, the last, and of equal ranges of steps the lowest and highest."""
    if len(points) <= limit:
        return list(points)
    first, num_ranges = points[0][0], (limit - 2) // 2
    length = (points[-1][0] - first + 1) / num_ranges
    kept = [points[0]]
    for _, group in itertools.groupby(points[1:-1], lambda point: int((point[0] - first) / length)):
        within = list(group)
        low = min(range(len(within)), key=lambda index: within[index][1])
        high = max(range(len(within)), key=lambda index: within[index][1])
        kept += [within[index] for index in sorted({low, high})]
    return [*kept, points[-1]]


class Smoother:
    """An exponential moving average over about `window` values, without the pull of a zero that it starts from.

    That is the bias correction of Adam (Kingma and Ba, 1412.6980).
    """

    def __init__(self, window: float, value: float = 0.0, num_values: int = 0):
        """`value` after `num_values`: where it goes on."""
        self._decay = 1 - 1 / max(1.0, window)
        self._weight = 1 - self._decay**num_values
        self._sum = value * self._weight

    def add(self, value: float) -> float:
        self._sum = self._decay * self._sum + (1 - self._decay) * value
        self._weight = self._decay * self._weight + (1 - self._decay)
        return self._sum / self._weight


def up_to(points: Iterable[tuple[int, float]], step: int) -> Points:
    return [point for point in points if point[0] <= step]


def is_finite(value: float) -> bool:
    return math.isfinite(value)
