"""Validates arrays of latents and masks that were read from files."""

from __future__ import annotations

import numpy as np

from library.data.buckets import PIXELS_PER_LATENT
from library.data.records import LatentKey


def latent_size(key: LatentKey) -> tuple[int, int]:
    """(h, w) of the latent."""
    width, height = key.placement.bucket
    return height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT


def array_problem(array: np.ndarray, size: tuple[int, int], *, num_dimensions: int) -> str | None:
    """Why latents (C, h, w) or a mask (h, w) are not valid for `size` (h, w); None if they are."""
    if not np.issubdtype(array.dtype, np.floating):
        return f"dtype {array.dtype}, expected floating-point numbers"
    if array.ndim != num_dimensions or array.shape[-2:] != size:
        expected = " x ".join(["channels"] * (num_dimensions - 2) + [str(side) for side in size])
        return f"shape {' x '.join(map(str, array.shape)) or '()'}, expected {expected}"
    if not np.isfinite(array).all():
        return "some values are NaN or inf"
    return None
