"""ICC colour profiles: converts images to sRGB, which models were trained on."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

from library.cli.damaged_files import DAMAGED_FILE_ERRORS

_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # Pillow's image mode for each colour space of profiles
_NUM_PROBES = 17  # levels tested per channel
_INVISIBLE = 1  # of 255: largest difference at which a profile counts as sRGB


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """An image in mode RGB, L or CMYK, converted from its ICC profile; in mode RGB.

    A profile that is corrupt or for another colour space than the image's is ignored, as viewers do.
    """
    convert = _converter(profile, image.mode) if profile else None
    if convert is not None:
        return convert(image)
    return image if image.mode == "RGB" else image.convert("RGB")


@lru_cache(maxsize=8)  # the images of a folder mostly share one
def _converter(profile: bytes, mode: str) -> Callable[[Image.Image], Image.Image] | None:
    """Converts images of a mode from a profile; None if the profile cannot be used or is sRGB already."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        expected = _MODES.get(opened.profile.xcolor_space.strip())
        if expected == mode == "L":
            return _grey_converter(opened)
        if expected is None or (expected != mode and (mode, expected) != ("L", "RGB")):
            return None
        transform = ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), expected, "RGB")
        if expected == "RGB" and _is_identity(transform):
            return None
    except (ImageCms.PyCMSError, *DAMAGED_FILE_ERRORS):
        return None
    return lambda image: _transformed(image.convert(expected), transform)


def _transformed(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    result = ImageCms.applyTransform(image, transform)
    assert result is not None  # None only with inPlace
    return result


def _grey_converter(profile: ImageCms.ImageCmsProfile) -> Callable[[Image.Image], Image.Image]:
    # with optimisation, dark greys would be off by up to 10 of 255; without it, converting all pixels takes seconds
    transform = ImageCms.buildTransform(
        profile, ImageCms.createProfile("sRGB"), "L", "RGB", flags=ImageCms.Flags.NOOPTIMIZE
    )
    greys = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    tables = np.asarray(ImageCms.applyTransform(greys, transform))[0].T.tolist()
    return lambda image: Image.merge("RGB", [image.point(table) for table in tables])


def _is_identity(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether the conversion changes nothing: most profiles are sRGB under one of many names."""
    levels = np.linspace(0, 255, _NUM_PROBES).astype(np.uint8)
    probes = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    converted = np.asarray(ImageCms.applyTransform(Image.fromarray(probes), transform))
    return bool(np.abs(converted.astype(np.int16) - probes).max() <= _INVISIBLE)
