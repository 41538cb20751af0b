"""Masks of inpainting: what of an image is to be drawn. Drawn at random as a function of a seed, or given by its mask.

Shapes like those that people draw: boxes, ellipses, polygons, brush strokes, clouds; and the full image, by which a
model keeps drawing from text alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from library.data.buckets import PIXELS_PER_LATENT
from library.data.records import Size, TrainedImage

_HALF = 128  # of 255: masks are to be drawn where they are 0.5 and lighter
_MOST_SHAPES = 3
_CLOUD_CELLS = (3, 6, 12, 24)  # on each side, of each octave of the noise


def _box(canvas: np.ndarray, rng: np.random.RandomState) -> None:
    height, width = canvas.shape
    x, y = rng.rand() * width, rng.rand() * height
    half_x, half_y = ((0.05 + 0.3 * rng.rand()) * side for side in (width, height))
    corners = ((round(x - half_x), round(y - half_y)), (round(x + half_x), round(y + half_y)))
    cv2.rectangle(canvas, *corners, 1, cv2.FILLED)


def _ellipse(canvas: np.ndarray, rng: np.random.RandomState) -> None:
    height, width = canvas.shape
    centre = (int(rng.rand() * width), int(rng.rand() * height))
    axes = (1 + int((0.05 + 0.3 * rng.rand()) * width), 1 + int((0.05 + 0.3 * rng.rand()) * height))
    cv2.ellipse(canvas, centre, axes, 180 * rng.rand(), 0, 360, 1, cv2.FILLED)


def _polygon(canvas: np.ndarray, rng: np.random.RandomState) -> None:
    """Corners all around a centre in the image, at distances of their own."""
    height, width = canvas.shape
    num_corners = rng.randint(4, 11)
    angles = (np.arange(num_corners) + rng.rand(num_corners)) / num_corners * 2 * np.pi
    radii = (0.1 + 0.35 * rng.rand(num_corners))[:, None] * (width, height)
    corners = rng.rand(2) * (width, height) + radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    cv2.fillPoly(canvas, [np.rint(corners).astype(np.int32)], 1)


def _stroke(canvas: np.ndarray, rng: np.random.RandomState) -> None:
    """A brush that moves on and turns, as wide all along."""
    height, width = canvas.shape
    side = min(height, width)
    thickness = max(2, round((0.04 + 0.12 * rng.rand()) * side))
    num_parts = rng.randint(3, 10)
    angles = rng.rand() * 2 * np.pi + np.cumsum(rng.uniform(-1, 1, num_parts))
    lengths = (0.05 + 0.2 * rng.rand(num_parts)) * side
    moves = lengths[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points = rng.rand(2) * (width, height) + np.concatenate([np.zeros((1, 2)), np.cumsum(moves, axis=0)])
    points = np.rint(np.clip(points, 0, (width - 1, height - 1))).astype(np.int32)
    cv2.polylines(canvas, [points], False, 1, thickness)
    for x, y in points:  # round ends and turns
        cv2.circle(canvas, (int(x), int(y)), thickness // 2, 1, cv2.FILLED)


def _cloud(canvas: np.ndarray, rng: np.random.RandomState) -> None:
    """Where smooth noise of several octaves is highest: 10 to 50 % of the image."""
    height, width = canvas.shape
    noise = np.zeros(canvas.shape, dtype=np.float32)
    for octave, cells in enumerate(_CLOUD_CELLS):
        coarse = rng.rand(cells, cells).astype(np.float32)
        noise += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) / 2**octave
    canvas[noise >= np.quantile(noise, 1 - (0.1 + 0.4 * rng.rand()))] = 1


def _full(canvas: np.ndarray, rng: np.random.RandomState) -> None:
    canvas[:] = 1


# each draws into a canvas of zeros, uint8 (H, W)
_SHAPES: Mapping[str, Callable[[np.ndarray, np.random.RandomState], None]] = {
    "full": _full,
    "box": _box,
    "ellipse": _ellipse,
    "polygon": _polygon,
    "stroke": _stroke,
    "cloud": _cloud,
}
_SEVERAL = ("box", "ellipse", "polygon", "stroke")  # of which one mask may have more than one


@dataclass(frozen=True)
class MaskShares:
    """How often each kind of mask is drawn, relative to the others."""

    shares: Mapping[str, float]

    def draw(self, size: Size, seed: int) -> np.ndarray:
        """A mask of pixels, bool (H, W), True where the image is to be drawn; a function of its arguments alone."""
        # the legacy generator: its streams stay the same in all versions of NumPy
        rng = np.random.RandomState(np.random.MT19937(seed))
        ends = np.cumsum(list(self.shares.values()))
        kind = list(self.shares)[int(np.searchsorted(ends / ends[-1], rng.rand(), side="right"))]
        canvas = np.zeros((size[1], size[0]), dtype=np.uint8)
        for _ in range(rng.randint(1, _MOST_SHAPES + 1) if kind in _SEVERAL else 1):
            _SHAPES[kind](canvas, rng)
        return canvas.astype(bool)


def light_parts(mask: np.ndarray) -> np.ndarray:
    """Where a mask image, uint8 (H, W), is 0.5 and lighter: bool (H, W)."""
    return mask >= _HALF


def transparent_parts(opacity: np.ndarray | None, size: Size) -> np.ndarray:
    """Where an image is more transparent than not, by its alpha channel, uint8 (H, W); nowhere without one."""
    return np.zeros((size[1], size[0]), dtype=bool) if opacity is None else opacity < _HALF


def masked_image(pixels: np.ndarray, mask: np.ndarray, scale: int = PIXELS_PER_LATENT) -> TrainedImage:
    """The image (3, H, W) with grey where the mask (H, W) is, and the mask of its latents, (H/8, W/8) of 0 and 1.

    By nearest, as Diffusers' pipelines: a latent has the mask of its first pixel. `scale`: pixels of a latent.
    """
    of_latents = mask[::scale, ::scale]
    return TrainedImage(np.where(mask, np.float32(0), pixels), np.ascontiguousarray(of_latents, dtype=np.float32))
