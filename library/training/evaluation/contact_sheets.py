"""Contact sheets of sample images: one of each round, and one that shows each prompt over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from library.training.evaluation.sample_files import SampleHistory, round_title

MAX_ROUNDS = 10  # columns of the sheet over time
_CELL = 256  # pixels of a thumbnail's longer side
_SMALL = 192  # and on the sheet over time
_GAP = 8
_LINE = 18
_LABEL = 220  # width of the prompts beside the rows
_INK, _PAPER, _EMPTY = "#1a1a1a", "#ffffff", "#e8e8e8"


def round_sheet(images: Sequence[Image.Image], prompts: Sequence[str]) -> Image.Image:
    """The images of one round as a grid, each with two lines of its prompt."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    height = _CELL + 2 * _LINE + _GAP
    sheet = Image.new("RGB", (_GAP + columns * (_CELL + _GAP), _GAP + rows * (height + _GAP)), _PAPER)
    for index, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
        x, y = _GAP + index % columns * (_CELL + _GAP), _GAP + index // columns * (height + _GAP)
        _paste(sheet, _thumbnail(image, _CELL), x, y, _CELL)
        _write(sheet, prompt, x, y + _CELL + 2, _CELL, 2)
    return sheet


class ProgressSheet:
    """The sheet over time: a row a prompt, a column a round; with many rounds, some of them."""

    def __init__(self, history: SampleHistory):
        self._history = history
        self._thumbnails: dict[Path, Image.Image | None] = {}

    def image(self) -> Image.Image:
        """The sheet now. The place of a file that is gone stays empty."""
        steps, rows = self._history.steps(MAX_ROUNDS), self._history.rows
        width = _LABEL + 2 * _GAP + len(steps) * (_SMALL + _GAP)
        sheet = Image.new("RGB", (width, _LINE + 2 * _GAP + len(rows) * (_SMALL + _GAP)), _PAPER)
        shown: dict[Path, Image.Image | None] = {}
        for column, step in enumerate(steps):
            x = _LABEL + 2 * _GAP + column * (_SMALL + _GAP)
            _write(sheet, round_title(self._history.rounds[step]), x, _GAP, _SMALL, 1)
            for row, images in enumerate(rows.values()):
                y = _LINE + 2 * _GAP + row * (_SMALL + _GAP)
                path = images.get(step)
                if path is not None:
                    shown[path] = self._thumbnails.get(path) or _read_thumbnail(path)
                _paste(sheet, None if path is None else shown[path], x, y, _SMALL)
        for row, (prompt, _) in enumerate(rows):
            _write(sheet, prompt.prompt, _GAP, _LINE + 2 * _GAP + row * (_SMALL + _GAP), _LABEL, _SMALL // _LINE)
        self._thumbnails = shown
        return sheet


def _read_thumbnail(path: Path) -> Image.Image | None:
    try:
        with Image.open(path) as image:
            return _thumbnail(image.convert("RGB"), _SMALL)
    except OSError:
        return None


def _thumbnail(image: Image.Image, side: int) -> Image.Image:
    factor = side / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.NEAREST)


def _paste(sheet: Image.Image, image: Image.Image | None, x: int, y: int, side: int) -> None:
    """Centres an image in its square; a grey one where there is none."""
    if image is None:
        sheet.paste(_EMPTY, (x, y, x + side, y + side))
    else:
        sheet.paste(image, (x + (side - image.width) // 2, y + (side - image.height) // 2))


def _write(sheet: Image.Image, text: str, x: int, y: int, width: int, max_lines: int) -> None:
    """Writes text broken at blanks into at most `max_lines` lines; the last ends in an ellipsis if more follows."""
    font = ImageFont.load_default(13)
    lines: list[str] = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width or not lines[-1]:
            lines[-1] = joined
        else:
            lines.append(word)
    if len(lines) > max_lines:
        lines = [*lines[: max_lines - 1], f"{lines[max_lines - 1]} ..."]
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        while font.getlength(line) > width and len(line) > 4:
            line = f"{line[:-4]}..."
        draw.text((x, y + number * _LINE), line, fill=_INK, font=font)
