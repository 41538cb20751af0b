"""Reads legacy .npz latents, as `prepare_buckets_latents.py` writes them: one file per image, without sizes in names.

`<stem>.npz` has `latents` (C, h, w), `original_size` (width, height) and `crop_ltrb`, `<stem>_flip.npz` the same of
the flipped image. Still older files have only the array, which NumPy names `arr_0`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from library.cli.damaged_files import DAMAGED_FILE_ERRORS, file_error_reason
from library.cli.errors import UserError, raise_together
from library.data.caches.latent_arrays import array_problem, latent_size
from library.data.caches.npz_files import opened_arrays
from library.data.records import CachedLatents, LatentKey, flipped_npz_path

_NAMES = ("latents", "arr_0")
_MAKE_AGAIN = "make the latents again with finetune/prepare_buckets_latents.py"


def legacy_npz_file(key: LatentKey) -> Path:
    """The legacy .npz file of a key with `legacy_npz_path`, flipped or not."""
    assert key.legacy_npz_path is not None
    return Path(flipped_npz_path(key.legacy_npz_path) if key.flipped else key.legacy_npz_path)


def read_legacy_npz(key: LatentKey) -> CachedLatents:
    """The legacy .npz latents, float32 (C, h, w), used as they are.

    Raises `UserError` naming the file if it is not found, corrupt, or not of the bucket's size.
    """
    path = legacy_npz_file(key)
    try:
        with opened_arrays(path) as file:
            latents = next((file[name] for name in _NAMES if name in file), None)
            found = ", ".join(file) or "nothing"
    except FileNotFoundError:
        raise _not_found(path, key) from None
    except DAMAGED_FILE_ERRORS as error:
        raise UserError(f"legacy .npz latents {path} are corrupt ({file_error_reason(error)})", _MAKE_AGAIN) from None
    if latents is None:
        raise UserError(f"legacy .npz latents {path}: no array `latents`, only {found}", _MAKE_AGAIN)
    problem = array_problem(latents, latent_size(key), num_dimensions=3)
    if problem is not None:
        raise UserError(f"legacy .npz latents {path} are not usable: {problem}", _MAKE_AGAIN)
    if key.alpha_is_mask:
        raise UserError(
            f"alpha_mask: the legacy .npz latents {path} have no mask",
            hint="remove alpha_mask, or move the .npz files away, so that the images are encoded with masks",
        )
    return CachedLatents(latents.astype(np.float32, copy=False))


def check_legacy_npz(keys: Iterable[LatentKey]) -> None:
    """Raises `UserError` with all legacy .npz files that are not found. Reading them validates their content."""
    files = [(legacy_npz_file(key), key) for key in keys if key.legacy_npz_path is not None]
    raise_together(_not_found(path, key) for path, key in files if not path.is_file())


def _not_found(path: Path, key: LatentKey) -> UserError:
    assert key.legacy_npz_path is not None
    if key.flipped and os.path.exists(key.legacy_npz_path):
        hint = "make them with --flip_aug too, or remove flip_aug here"
        return UserError(f"flip_aug: legacy .npz latents of the flipped image not found: {path}", hint)
    return UserError(f"legacy .npz latents not found: {path}", _MAKE_AGAIN)
