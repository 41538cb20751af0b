"""Reads .npz files, and validates arrays of latents and masks from them."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from library.data.buckets import PIXELS_PER_LATENT
from library.data.records import LatentKey

# what reading a corrupt or unreadable .npz file raises
DAMAGE_ERRORS = (
    OSError,
    ValueError,
    LookupError,
    ArithmeticError,
    MemoryError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)

_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # of np.savez and np.savez_compressed


@contextmanager
def opened_arrays(path: str | os.PathLike[str]) -> Iterator[Mapping[str, np.ndarray]]:
    """The arrays of an .npz file by name, each read when asked for.

    Raises `FileNotFoundError`, and one of `DAMAGE_ERRORS` for a corrupt file, in the block too.
    """
    file = np.load(path, allow_pickle=False)
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError("a single array, not an .npz file")
    with file:
        assert file.zip is not None  # the file is open
        # other compressions, which a corrupt file can seem to have, raise errors of optional modules
        if any(info.compress_type not in _COMPRESSIONS for info in file.zip.infolist()):
            raise ValueError("unknown compression")
        yield file


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
