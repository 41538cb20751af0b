"""Images for the tests of the data room."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def save_image(path: Path, size: tuple[int, int], number: int = 0, **save_options) -> Path:
    """An image that differs from those of other numbers and from its own mirror image."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 200, height))
    pixels = np.stack([x, y, np.full_like(x, number * 37 % 256)], axis=-1).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **save_options)
    return path
