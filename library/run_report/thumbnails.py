"""Thumbnails of sample images, as many and as large as fit into the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from library.run_report.record import ImageKey, SampleRow

BUDGET = 8_000_000  # characters of all data URIs: the page stays under 10 MB
MOST_ROWS = 200
MOST_ROUNDS = 16
_SIDES = (320, 256, 192, 128, 96)
_QUALITY = 80


@dataclass(frozen=True)
class SampleGrid:
    """The sample images of a run: a row for each prompt, a column for each round."""

    rows: Sequence[SampleRow]
    rounds: Sequence[tuple[int, str]]  # (step, title)
    files: Mapping[ImageKey, Path]


@dataclass(frozen=True)
class ShownGrid:
    """What of a grid is on the page; `num_rows` and `num_rounds` are those of the whole."""

    rows: Sequence[SampleRow]
    rounds: Sequence[tuple[int, str]]
    images: Mapping[ImageKey, str]  # data URIs
    num_rows: int
    num_rounds: int


class Thumbnails:
    """Makes the thumbnails of a run's page, and keeps those that the page has for the next time."""

    def __init__(self, budget: int = BUDGET) -> None:
        self._budget = budget
        self._made: dict[tuple[Path, int], str | None] = {}
        self._first_side = 0  # larger ones did not fit

    def shown(self, grid: SampleGrid) -> ShownGrid:
        """The grid as the page has it: smaller images first, then fewer rounds and prompts, until they fit."""
        rows = grid.rows[:MOST_ROWS]
        num_rounds = min(MOST_ROUNDS, len(grid.rounds))
        while True:
            rounds = [grid.rounds[index] for index in spread(len(grid.rounds), num_rounds)]
            for index in range(self._first_side, len(_SIDES)):
                images = self._fitting(grid, len(rows), rounds, _SIDES[index])
                if images is not None:
                    self._first_side = index
                    return ShownGrid(rows, rounds, images, len(grid.rows), len(grid.rounds))
            if num_rounds > 2:
                num_rounds = max(2, num_rounds // 2)
            else:
                rows = rows[: len(rows) // 2]

    def _fitting(
        self, grid: SampleGrid, num_rows: int, rounds: Sequence[tuple[int, str]], side: int
    ) -> dict[ImageKey, str] | None:
        """The thumbnails at this size; None where they are too large together."""
        made: dict[tuple[Path, int], str | None] = {}
        images: dict[ImageKey, str] = {}
        size = 0
        for key in ((row, step) for row in range(num_rows) for step, _ in rounds):
            path = grid.files.get(key)
            if path is None:
                continue
            data = self._made[path, side] if (path, side) in self._made else thumbnail(path, side)
            made[path, side] = data
            if data is not None:
                images[key] = data
                size += len(data)
            if size > self._budget:
                return None
        self._made = made
        return images


def thumbnail(path: Path, side: int) -> str | None:
    """A data URI of an image, at most `side` pixels wide and high; None where the file is gone or damaged."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            shown = image.convert("RGB")
    except (OSError, ValueError, SyntaxError):
        return None
    shown.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    shown.save(file, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def spread(number: int, most: int) -> list[int]:
    """At most `most` of the indices below `number`, from the first to the last, evenly."""
    if number <= most:
        return list(range(number))
    if most < 2:
        return [number - 1][:most]
    return [round(index * (number - 1) / (most - 1)) for index in range(most)]
