"""What augmentations do to an image once: drawn from a keyed generator, applied by pure functions."""

from __future__ import annotations

import random
from dataclasses import replace

import cv2
import numpy as np

from library.data.images.face_names import Face
from library.data.records import ColourShift, Placement, Size

_COLOUR_RATE = 1 / 3
_LARGEST_HUE_SHIFT = 8  # degrees / 2
_GAMMA_RANGE = (0.95, 1.05)
_HUES = 180  # OpenCV's circle of hues, for uint8


def draw_colour(rng: random.Random) -> ColourShift | None:
    """A weak change of colours a third of the times, else None: a shift of hues or another gamma, equally likely."""
    if rng.random() >= _COLOUR_RATE:
        return None
    if rng.random() < 0.5:
        return ColourShift(hue=rng.randint(-_LARGEST_HUE_SHIFT, _LARGEST_HUE_SHIFT))
    return ColourShift(gamma=rng.uniform(*_GAMMA_RANGE))


def apply_colour(image: np.ndarray, shift: ColourShift) -> np.ndarray:
    """uint8 RGB (H, W, 3) with its hues turned, and each value v of [0, 1] as v to the power of gamma."""
    if shift.hue:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(np.int16) + shift.hue) % _HUES
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if shift.gamma != 1:
        levels = np.linspace(0, 1, 256) ** shift.gamma
        image = np.rint(levels * 255).astype(np.uint8)[image]
    return image


def random_placement(placement: Placement, rng: random.Random) -> Placement:
    """The same size and bucket, with the window anywhere in the resized image."""
    left, top = (
        rng.randint(0, resized - window) for resized, window in zip(placement.resized, placement.bucket, strict=True)
    )
    return replace(placement, crop=(left, top))


def face_placement(
    image_size: Size,
    bucket: Size,
    face: Face,
    *,
    crop_range: tuple[float, float],
    rng: random.Random,
    also_random: bool,
) -> Placement:
    """A window of bucket size around a face, whose centre must lie in the image.

    The short side of the window is u times the longer side of the face, with u drawn uniformly from `crop_range`. The
    image is never resized to less than what covers the bucket, and enlarged only where it must be to cover it. The
    window has the face in its middle, or, with `also_random`, its centre anywhere in it; it always stays in the
    image.
    """
    wanted = min(bucket) / (rng.uniform(*crop_range) * max(face.size))
    covering = max(window / side for window, side in zip(bucket, image_size, strict=True))
    scale = max(covering, min(1.0, wanted))
    resized = tuple(max(window, int(side * scale + 0.5)) for window, side in zip(bucket, image_size, strict=True))
    crop = []
    for axis in (0, 1):
        centre = int((face.centre[axis] + 0.5) * resized[axis] / image_size[axis])
        last = resized[axis] - bucket[axis]
        if also_random:
            crop.append(rng.randint(max(0, centre - bucket[axis] + 1), min(centre, last)))
        else:
            crop.append(min(max(0, centre - bucket[axis] // 2), last))
    return Placement(bucket, (resized[0], resized[1]), (crop[0], crop[1]))
