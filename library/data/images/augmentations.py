"""Augmentations: colours, random crop, crop around a face. Drawn from a keyed generator, applied by pure functions."""

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
_HUES = 180  # range of OpenCV's hues, for uint8


def draw_colour(rng: random.Random) -> ColourShift | None:
    """`color_aug`: with probability 1/3 a small shift of hue or of gamma, equally likely; else None."""
    if rng.random() >= _COLOUR_RATE:
        return None
    if rng.random() < 0.5:
        return ColourShift(hue=rng.randint(-_LARGEST_HUE_SHIFT, _LARGEST_HUE_SHIFT))
    return ColourShift(gamma=rng.uniform(*_GAMMA_RANGE))


def apply_colour(image: np.ndarray, shift: ColourShift) -> np.ndarray:
    """uint8 RGB (H, W, 3) with its hues shifted, and each value v in [0, 1] raised to the power of gamma."""
    if shift.hue:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(np.int16) + shift.hue) % _HUES
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if shift.gamma != 1:
        levels = np.linspace(0, 1, 256) ** shift.gamma
        image = np.rint(levels * 255).astype(np.uint8)[image]
    return image


def random_placement(placement: Placement, rng: random.Random) -> Placement:
    """Random crop: the same size and bucket, cropped anywhere in the resized image."""
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
    """A crop of bucket size around a face, whose centre must be in the image.

    The short side of the crop is u times the longer side of the face, with u drawn uniformly from `crop_range`. The
    resized image always covers the bucket, and is upscaled only if it must be to cover it. The crop is centred on the
    face, or, with `also_random`, has the centre of the face anywhere in it; it always stays inside the image.
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
