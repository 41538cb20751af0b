"""Files of arrays, and what an array of latents must be like to be trained on, whatever file it comes from."""

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

# what readers of .npz files raise for damaged ones, and for those that cannot be read
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

    Raises `FileNotFoundError`, and one of `DAMAGE_ERRORS` for a damaged file, in the block too.
    """
    file = np.load(path, allow_pickle=False)
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError("it is one bare array")
    with file:
        # other kinds of compression, which a damaged file can seem to have, raise errors of optional modules
        if any(info.compress_type not in _COMPRESSIONS for info in file.zip.infolist()):
            raise ValueError("it is compressed in an unknown way")
        yield file


def latent_size(key: LatentKey) -> tuple[int, int]:
    """(h, w) of the latent."""
    width, height = key.placement.bucket
    return height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT


def array_problem(array: np.ndarray, size: tuple[int, int], *, num_dimensions: int) -> str | None:
    """What is wrong with latents (C, h, w) or a mask (h, w) of `size` (h, w); None if nothing is."""
    if not np.issubdtype(array.dtype, np.floating):
        return f"they are of type {array.dtype}, not floating-point numbers"
    if array.ndim != num_dimensions or array.shape[-2:] != size:
        expected = " x ".join(["channels"] * (num_dimensions - 2) + [str(side) for side in size])
        return f"they are {' x '.join(map(str, array.shape)) or 'a single number'}, not {expected}"
    if not np.isfinite(array).all():
        return "some of the numbers are infinite or undefined"
    return None
