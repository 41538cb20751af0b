"""The geometry of a chart: paths and marks in units of 1000 by 1000, which the template stretches over the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from library.run_report.curves import thinned
from library.run_report.record import Points

SIDE = 1000
MOST_POINTS = 1000  # of a line; a screen has not many more columns
_MOST_EPOCHS = 40  # that are marked
_NEXT = {1: 2, 2: 5, 5: 10}  # round factors
_MARGIN = 0.05  # of the range of values, above and below


@dataclass(frozen=True)
class Line:
    """A curve as it is drawn; `look` is its class in the style sheet."""

    name: str
    look: str
    points: Points
    is_dotted: bool = False  # its points are few, and shown


@dataclass(frozen=True)
class Tick:
    """A label of an axis, at a share of its length."""

    at: float
    text: str


@dataclass(frozen=True)
class Mark:
    """Something that happened at a step; `kind`: "epoch", "save" or "skipped"."""

    kind: str
    at: float
    text: str


@dataclass(frozen=True)
class Path:
    """A line as SVG path data, and its points as (x, y, text) where these are shown."""

    line: Line
    data: str
    dots: list[tuple[float, float, str]]


@dataclass(frozen=True)
class Chart:
    """Everything that the template places."""

    title: str
    paths: list[Path]
    values: list[Tick]
    steps: list[Tick]
    marks: list[Mark]


@dataclass(frozen=True)
class Range:
    """The values that a chart shows; those beyond are cut off at its edge."""

    low: float
    high: float

    def share(self, value: float) -> float:
        """0 at the lower end, 1 at the upper one."""
        return (value - self.low) / (self.high - self.low)


def make_chart(
    title: str,
    lines: Sequence[Line],
    last_step: int,
    marks: Iterable[tuple[str, int, str]] = (),
    *,
    robust: bool = False,
) -> Chart | None:
    """None where there is nothing to draw. `marks`: (kind, step, text). `robust`: single outliers do not set the range.

    Robust, a line of the look "raw" may leave the chart with one value in a hundred.
    """
    lines = [Line(each.name, each.look, thinned(each.points, MOST_POINTS), each.is_dotted) for each in lines]
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    shown, last = value_range(lines, robust), max(1, last_step)
    return Chart(
        title,
        [_path(line, shown, last) for line in lines],
        [Tick(shown.share(value), text) for value, text in ticks(shown.low, shown.high)],
        [Tick(step / last, text) for step, text in ticks(0, last, whole=True)],
        [Mark(kind, step / last, text) for kind, step, text in _thinned_marks(marks)],
    )


def value_range(lines: Sequence[Line], robust: bool) -> Range:
    """Of all values, or with a line of the look "raw" of all but one in a hundred of its; with a margin."""
    values = []
    for line in lines:
        own = sorted(value for _, value in line.points)
        cut = len(own) // 100 if robust and line.look == "raw" else 0
        values += own[cut : len(own) - cut]
    low, high = min(values), max(values)
    margin = (high - low) * _MARGIN or abs(high) * _MARGIN or 1.0
    return Range(0.0 if 0 <= low < margin else low - margin, high + margin)


def ticks(low: float, high: float, *, whole: bool = False, about: int = 5) -> list[tuple[float, str]]:
    """Round values from `low` to `high`, about so many, with their texts."""
    rough = (high - low) / about
    scale = 10.0 ** math.floor(math.log10(rough))
    # the nearest of 1, 2, 5 and 10, as factors
    step = scale * next((factor for factor in (1, 2, 5) if rough / scale <= math.sqrt(factor * _NEXT[factor])), 10)
    if whole:
        step = max(1.0, round(step))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, -math.floor(math.log10(step)))
    values = [(number * step, number) for number in range(first, last + 1)]
    if whole:
        return [(value, f"{round(value):,}") for value, _ in values]
    return [(value, f"{value:.{digits}f}" if digits <= 5 else f"{value:.3g}") for value, _ in values]


def _path(line: Line, shown: Range, last: int) -> Path:
    places = [(SIDE * step / last, SIDE * (1 - shown.share(value))) for step, value in line.points]
    data = "M" + "L".join(f"{x:.1f} {min(max(y, -SIDE), 2 * SIDE):.1f}" for x, y in places)
    if len(places) == 1 and not line.is_dotted:
        data += "h2"
    dots = []
    if line.is_dotted and len(places) <= MOST_POINTS // 5:
        dots = [
            (x / SIDE, y / SIDE, f"{line.name} {value:.4g} at step {step}")
            for (x, y), (step, value) in zip(places, line.points, strict=True)
        ]
    return Path(line, data, dots)


def _thinned_marks(marks: Iterable[tuple[str, int, str]]) -> list[tuple[str, int, str]]:
    """The ends of epochs are marked every so many, where they would cover the chart."""
    marks = list(marks)
    epochs = [mark for mark in marks if mark[0] == "epoch"]
    every = math.ceil(len(epochs) / _MOST_EPOCHS) or 1
    return [*epochs[every - 1 :: every], *(mark for mark in marks if mark[0] != "epoch")]


def rate_lines(curves: Mapping[str, Points]) -> list[Line]:
    """The learning rates among the curves; those of the same values are one line."""
    by_points: dict[tuple[tuple[int, float], ...], list[str]] = {}
    for name, points in curves.items():
        if name.startswith("lr/"):
            by_points.setdefault(tuple(points), []).append(name.removeprefix("lr/"))
    groups = enumerate(by_points.items())
    return [Line(_joined(names), f"hue{index % 8}", list(points)) for index, (points, names) in groups]


def _joined(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} more"
