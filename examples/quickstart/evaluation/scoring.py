"""Scores images of the tiny model without a model: which colour, shape, position and emoji they show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from drawing import COLOURS, OFFSETS, SHAPES, draw_emoji, outline
from PIL import Image

NAMES = list(COLOURS)
TABLE = np.array([COLOURS[name] for name in NAMES], float)


def nearest_colour(rgb: np.ndarray) -> str:
    return NAMES[int(((TABLE - rgb) ** 2).sum(1).argmin())]


def border_colour(image: np.ndarray, width: int = 2) -> np.ndarray:
    """The median colour of the border of an image.  # (3,)"""
    w = width
    parts = [image[:w], image[-w:], image[:, :w], image[:, -w:]]
    return np.median(np.concatenate([part.reshape(-1, 3) for part in parts]), 0)


def bounding_square(mask: np.ndarray) -> np.ndarray:
    """A mask cut to its bounding box, padded to a square and scaled.  # (32, 32), bool"""
    ys, xs = np.where(mask)
    top, bottom, left, right = ys.min(), ys.max() + 1, xs.min(), xs.max() + 1
    side = max(bottom - top, right - left)
    box = np.zeros((side, side), np.uint8)
    y, x = (side - (bottom - top)) // 2, (side - (right - left)) // 2
    box[y : y + bottom - top, x : x + right - left] = mask[top:bottom, left:right] * 255
    return np.asarray(Image.fromarray(box).resize((32, 32), Image.Resampling.BOX)) > 127


TEMPLATES = {
    shape: [bounding_square(outline(shape, 32, 32, 24, angle) > 0.5) for angle in (-0.1, 0, 0.1)] for shape in SHAPES
}


def score_shape(image: np.ndarray, item: dict[str, str]) -> dict[str, bool]:
    """Whether background, colour, shape and position of an image are those of `item`.

    The shape is what differs from the border's colour; its outline has to overlap that of the named shape more than
    those of the seven others (intersection over union).
    """
    image = image.astype(float)
    back = border_colour(image)
    distance = np.sqrt(((image - back) ** 2).sum(-1))
    mask = distance > max(25, 0.5 * np.percentile(distance, 97))
    result = {"background": nearest_colour(back) == item["background"], "colour": False, "shape": False}
    result["position"] = False
    if mask.sum() < 20:
        return result
    front = np.median(image[distance > 0.8 * np.percentile(distance[mask], 60)], 0)
    found = bounding_square(mask)
    overlap = {
        shape: max((found & template).sum() / (found | template).sum() for template in templates)
        for shape, templates in TEMPLATES.items()
    }
    ys, xs = np.where(mask)
    x, y = xs.mean() - 31.5, ys.mean() - 31.5
    position = (0 if abs(x) < 7.5 else np.sign(x), 0 if abs(y) < 7.5 else np.sign(y))
    result["colour"] = nearest_colour(front) == item["colour"]
    result["shape"] = max(overlap, key=lambda shape: overlap[shape]) == item["shape"]
    result["position"] = position == OFFSETS[item["position"]]
    return result


class EmojiIndex:
    """The reference emoji, found by their likeness at 16x16 pixels on the same background."""

    def __init__(self, folder: Path) -> None:
        files = sorted(folder.glob("*.png"))
        self.emoji = {path.stem.replace("_", " "): Image.open(path).convert("RGBA") for path in files}
        self.drawn: dict[str, np.ndarray] = {}

    @staticmethod
    def _small(image: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BOX), float).ravel()

    def order(self, image: np.ndarray, background: str) -> list[str]:
        """The words of the emoji, nearest first."""
        if background not in self.drawn:
            rows = [
                [self._small(draw_emoji(emoji, background, flip)) for flip in (False, True)]
                for emoji in self.emoji.values()
            ]
            self.drawn[background] = np.array(rows)
        distances = ((self.drawn[background] - self._small(image)) ** 2).mean(2).min(1)
        words = list(self.emoji)
        return [words[i] for i in distances.argsort()]
