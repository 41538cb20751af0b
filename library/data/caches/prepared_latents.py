"""Latents that were prepared before training, in the older layout: one file for each image, without sizes in names.

`<stem>.npz` holds `latents` (C, h, w), `original_size` (width, height) and `crop_ltrb`, `<stem>_flip.npz` the same of
the mirrored image. Still older files hold the bare array alone, which NumPy names `arr_0`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from library.cli.errors import UserError, raise_together
from library.data.caches.latent_arrays import DAMAGE_ERRORS, array_problem, latent_size, opened_arrays
from library.data.records import CachedLatents, LatentKey

_NAMES = ("latents", "arr_0")
_PREPARE_ANEW = "prepare the latents anew with finetune/prepare_buckets_latents.py"


def prepared_file(key: LatentKey) -> Path:
    """The file that holds the latents of a key with `prepared_path`."""
    assert key.prepared_path is not None
    path = Path(key.prepared_path)
    return path.with_name(f"{path.stem}_flip.npz") if key.flipped else path


def read_prepared(key: LatentKey) -> CachedLatents:
    """The prepared latents, float32 (C, h, w), used as they are.

    Raises `UserError` naming the file if it is missing, damaged, or not of the bucket's size.
    """
    path = prepared_file(key)
    try:
        with opened_arrays(path) as file:
            latents = next((file[name] for name in _NAMES if name in file), None)
            found = ", ".join(file) or "nothing"
    except FileNotFoundError:
        raise _missing(path, key) from None
    except DAMAGE_ERRORS as error:
        raise UserError(f"prepared latents {path} are damaged ({_reason(error)})", _PREPARE_ANEW) from None
    if latents is None:
        raise UserError(f"prepared latents {path}: `latents` is missing, the file holds {found}", _PREPARE_ANEW)
    problem = array_problem(latents, latent_size(key), num_dimensions=3)
    if problem is not None:
        raise UserError(f"prepared latents {path}: {problem}", _PREPARE_ANEW)
    if key.alpha_is_mask:
        raise UserError(
            f"alpha_mask: the prepared latents {path} hold no mask",
            hint="leave out alpha_mask, or move the prepared latents away, so that images are encoded with masks",
        )
    return CachedLatents(latents.astype(np.float32, copy=False))


def check_prepared(keys: Iterable[LatentKey]) -> None:
    """Raises `UserError` with all prepared files that are missing. What is in them is checked when they are read."""
    prepared = [(prepared_file(key), key) for key in keys if key.prepared_path is not None]
    raise_together(_missing(path, key) for path, key in prepared if not path.is_file())


def _missing(path: Path, key: LatentKey) -> UserError:
    if key.flipped and os.path.exists(key.prepared_path):
        hint = "prepare them with --flip_aug too, or leave out flip_aug here"
        return UserError(f"flip_aug: prepared latents of the mirrored image, {path}, are missing", hint)
    return UserError(f"prepared latents {path} are missing", _PREPARE_ANEW)


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
