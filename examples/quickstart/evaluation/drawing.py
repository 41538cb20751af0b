"""Draws what the model was trained on: coloured shapes and emoji on plain backgrounds, 64x64 pixels."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64
COLOURS = {
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (250, 215, 50),
    "green": (50, 165, 70),
    "blue": (50, 95, 215),
    "purple": (140, 65, 185),
    "pink": (245, 140, 190),
    "brown": (125, 80, 45),
    "black": (30, 30, 32),
    "white": (248, 248, 248),
    "gray": (140, 140, 145),
}
OFFSETS = {"": (0, 0), "left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}

_ARM = 0.32  # of the cross, half its width; the arms reach 0.95
_POLYGONS = {
    "square": [(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)],
    "diamond": [(0, -1.05), (0.72, 0), (0, 1.05), (-0.72, 0)],
    "triangle": [(0, -1), (0.98, 0.8), (-0.98, 0.8)],
    "cross": [
        *[(-_ARM, -0.95), (_ARM, -0.95), (_ARM, -_ARM), (0.95, -_ARM), (0.95, _ARM), (_ARM, _ARM)],
        *[(_ARM, 0.95), (-_ARM, 0.95), (-_ARM, _ARM), (-0.95, _ARM), (-0.95, -_ARM), (-_ARM, -_ARM)],
    ],
    "star": [
        (radius * math.sin(i * math.pi / 5), -radius * math.cos(i * math.pi / 5))
        for i in range(10)
        for radius in [1.08 if i % 2 == 0 else 0.45]
    ],
    "heart": [
        (
            16 * math.sin(t) ** 3 / 16.5,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) + 2) / 15,
        )
        for t in [2 * math.pi * i / 60 for i in range(60)]
    ],
}
SHAPES = ["circle", "square", "triangle", "star", "heart", "diamond", "ring", "cross"]


def outline(shape: str, x: float, y: float, radius: float, angle: float = 0.0, oversampling: int = 4) -> np.ndarray:
    """The coverage of each pixel, 0 to 1, by a shape around (x, y).  # (64, 64)"""
    image = Image.new("L", (SIZE * oversampling, SIZE * oversampling), 0)
    draw = ImageDraw.Draw(image)
    x, y, radius = x * oversampling, y * oversampling, radius * oversampling
    if shape in _POLYGONS:
        cos, sin = math.cos(angle), math.sin(angle)
        points = [
            (x + radius * (px * cos - py * sin), y + radius * (px * sin + py * cos)) for px, py in _POLYGONS[shape]
        ]
        draw.polygon(points, fill=255)
    else:
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=255)
        if shape == "ring":
            hole = 0.52 * radius
            draw.ellipse([x - hole, y - hole, x + hole, y + hole], fill=0)
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX), np.float32) / 255


def shape_radius(size: str, position: str) -> float:
    return {"small": 12.0, "big": 27.0}.get(size, 14.5 if position else 21.0)


def plain(colour: str) -> np.ndarray:
    """An image of one colour.  # (64, 64, 3)"""
    return np.ones((SIZE, SIZE, 3), np.float32) * np.array(COLOURS[colour], np.float32)


def blend(background: np.ndarray, front: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    image = background * (1 - coverage[..., None]) + front * coverage[..., None]
    return image.round().clip(0, 255).astype(np.uint8)


def draw_shape(colour: str, shape: str, background: str, size: str = "", position: str = "") -> np.ndarray:
    dx, dy = OFFSETS[position]
    coverage = outline(shape, 32 + 15 * dx, 32 + 15 * dy, shape_radius(size, position))
    return blend(plain(background), plain(colour), coverage)


def draw_emoji(emoji: Image.Image, background: str, flip: bool = False, size: int = 59) -> np.ndarray:
    """An RGBA emoji in the middle of a plain background."""
    if flip:
        emoji = emoji.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    small = np.asarray(emoji.resize((size, size), Image.Resampling.BICUBIC), np.float32)
    layer = np.zeros((SIZE, SIZE, 4), np.float32)
    offset = (SIZE - size) // 2
    layer[offset : offset + size, offset : offset + size] = small
    return blend(plain(background), layer[..., :3], layer[..., 3] / 255)
