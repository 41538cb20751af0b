"""Legacy .npz latents, as `prepare_buckets_latents.py` writes them: one file per image, without sizes in names.

`<stem>.npz` has `latents` (C, h, w), `original_size` (width, height) and `crop_ltrb`, `<stem>_flip.npz` the same of
the flipped image. Still older files have only the array, which NumPy names `arr_0`. We add a member `made_from.json`,
as in cache files, by which latents of an earlier run are known to be usable.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from library.cli.damaged_files import DAMAGED_FILE_ERRORS, file_error_reason
from library.cli.errors import UserError, raise_together
from library.data.buckets import crop_ltrb
from library.data.caches.latent_arrays import array_problem, latent_size
from library.data.caches.latent_facts import current_facts, differing_facts
from library.data.caches.npz_files import array_names, opened_arrays, read_made_from, write_stored
from library.data.records import CachedLatents, LatentKey, flipped_npz_path

_NAMES = ("latents", "arr_0")
_ENTRY = "latents"
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


def has_legacy_npz(key: LatentKey, fingerprint: str) -> bool:
    """Whether there are legacy .npz latents of this key's size that can be used.

    Those of this program must be made from exactly this, by the VAE of this fingerprint; what others are made from
    their files do not say.
    """
    try:
        with opened_arrays(legacy_npz_file(key)) as file:
            assert file.zip is not None
            facts = read_made_from(file.zip, array_names(file.zip), _ENTRY)
            latents = next((file[name] for name in _NAMES if name in file), None)
    except DAMAGED_FILE_ERRORS:
        return False
    if latents is None or array_problem(latents, latent_size(key), num_dimensions=3) is not None:
        return False
    return facts is None or not differing_facts(facts, key, fingerprint)


def write_legacy_npz(latents: Mapping[LatentKey, CachedLatents], fingerprint: str) -> None:
    """Writes legacy .npz latents, replacing those that are there. Raises `UserError` where that is not possible."""
    for key, each in latents.items():
        path = legacy_npz_file(key)
        arrays = {
            "latents": np.asarray(each.latents, dtype=np.float32),
            "original_size": np.array(key.image_size),
            "crop_ltrb": np.array(crop_ltrb(key.placement.bucket, key.image_size)),
        }
        try:
            write_stored(path, arrays, {_ENTRY: current_facts(key, fingerprint)})
        except OSError as error:
            raise UserError(
                f"latents {path} cannot be written: {error.strerror}",
                hint="free disk space, or make the folder writable",
            ) from None


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
