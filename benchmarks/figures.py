"""Figures of benchmarks: their median and spread beside their target, as a table and as JSON."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """What was measured, once in each round. `target`: of the median, at most or, with `is_least`, at least."""

    name: str
    values: tuple[float, ...]
    unit: str = "x"
    target: float | None = None
    is_least: bool = False

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def reaches_target(self) -> bool | None:
        if self.target is None:
            return None
        return self.median >= self.target if self.is_least else self.median <= self.target

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "median": self.median, "reaches_target": self.reaches_target}


def ratio(name: str, ours: Sequence[float], bare: Sequence[float], target: float | None) -> Figure:
    """Ours over the bare one's, in the same rounds."""
    return Figure(name, tuple(a / b for a, b in zip(ours, bare, strict=True)), target=target)


def table(figures: Sequence[Figure]) -> str:
    width = max(len(figure.name) for figure in figures)
    lines = [f"{'':{width}}{'median':>10}{'least':>10}{'most':>10}  {'':2}  target"]
    for figure in figures:
        cells = "".join(f"{value:10.3f}" for value in (figure.median, min(figure.values), max(figure.values)))
        sign = "at least" if figure.is_least else "at most"
        verdict = {True: "reached", False: "missed", None: ""}[figure.reaches_target]
        target = "" if figure.target is None else f"{sign} {figure.target:g}: {verdict}"
        lines.append(f"{figure.name:{width}}{cells}  {figure.unit:2}  {target}")
    return "\n".join(lines)


def main(description: str | None, figures: Callable[[int], list[Figure]]) -> None:
    """The command of a benchmark: measures in `--rounds` and shows the table."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    print(table(figures(parser.parse_args().rounds)))
