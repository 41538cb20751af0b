"""Cached latents: .npz files beside the images (`--cache_latents_to_disk`), in the layout that other trainers read.

A file `<stem>_<W>x<H>_sd.npz` (W and H of the image, four digits) holds, for each latent size h x w:
`latents_<h>x<w>` and `latents_flipped_<h>x<w>` (C, h, w), `original_size_<h>x<w>` (width, height),
`crop_ltrb_<h>x<w>` and, with `alpha_mask`, `alpha_mask_<h>x<w>` (h, w) of the unflipped image. Files of masked images,
`<stem>_<W>x<H>_sd_inpaint.npz`, hold `inpaint_mask_<h>x<w>` and `inpaint_mask_flipped_<h>x<w>` instead. We add a member
`made_from.json` of what the latents of each size were made from: latents for which it differs, or that lack it, are not
used unless the user trusts them (`--skip_cache_check`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np

from library.cli.damaged_files import DAMAGED_FILE_ERRORS
from library.cli.errors import UserError
from library.data.buckets import crop_ltrb
from library.data.caches.cache_names import CacheFolders, cache_names
from library.data.caches.latent_arrays import array_problem, latent_size
from library.data.caches.latent_facts import current_facts, differing_facts
from library.data.caches.legacy_npz_latents import read_legacy_npz
from library.data.caches.npz_files import (
    StoredArrays,
    array_names,
    locked_folder,
    opened_arrays,
    read_made_from,
    read_stored,
    write_stored,
)
from library.data.randomness import derive_seed
from library.data.records import CachedLatents, LatentKey


def latent_seed(key: LatentKey) -> int:
    """The seed of the VAE's random sample: independent of the location of the folder and of mtimes."""
    placement = key.placement
    numbers = (*key.image_size, *placement.bucket, *placement.resized, *placement.crop, int(key.flipped))
    return derive_seed("latent", key.image_key, *numbers)


def cache_path(key: LatentKey) -> Path:
    """The cache file beside the image that its latents are written to."""
    return CacheFolders().cache_path(key)


def entry_of(key: LatentKey) -> str:
    """The entry of the cache file, which has all latents of one size: <h>x<w>."""
    return "{}x{}".format(*latent_size(key))


def needed_arrays(key: LatentKey) -> set[str]:
    """The names of the arrays that training reads for this key."""
    names = {_latents_name(key)}
    return names | {_mask_name(key)} if _stores_mask(key) else names


def _stores_mask(key: LatentKey) -> bool:
    return key.alpha_is_mask or key.masked_by is not None


def _latents_name(key: LatentKey) -> str:
    return ("latents_flipped_" if key.flipped else "latents_") + entry_of(key)


def _mask_name(key: LatentKey) -> str:
    if key.masked_by is not None:  # by nearest, which the flipped mask is not the mirror image of
        return ("inpaint_mask_flipped_" if key.flipped else "inpaint_mask_") + entry_of(key)
    return "alpha_mask_" + entry_of(key)


def read_latents(key: LatentKey, fingerprint: str | None) -> CachedLatents | None:
    """The cached or legacy .npz latents; None if there are none that were made from exactly this.

    `fingerprint`: of the VAE that they must have been made with; None: any latents of the right name are used.
    Raises `UserError` naming the file if it is corrupt or has latents of another size.
    """
    if key.legacy_npz_path is not None:
        return read_legacy_npz(key)
    folder = os.path.dirname(key.path)
    # both names, since an image of the same stem may have been added or removed; `made_from` has the image's name
    paths = (os.path.join(folder, name) for name in cache_names(key))
    found = (_read_entry(path, key, fingerprint) for path in paths)
    return next((latents for latents in found if latents is not None), None)


def _read_entry(path: str, key: LatentKey, fingerprint: str | None) -> CachedLatents | None:
    try:
        with opened_arrays(path) as file:
            assert file.zip is not None
            names = array_names(file.zip)
            if not needed_arrays(key) <= names:
                return None
            if fingerprint is not None:
                facts = read_made_from(file.zip, names, entry_of(key))
                if facts is None or differing_facts(facts, key, fingerprint):
                    return None
            latents = file[_latents_name(key)]
            mask = file[_mask_name(key)] if _stores_mask(key) else None
    except FileNotFoundError:
        return None
    except DAMAGED_FILE_ERRORS as error:
        raise _unusable(path, f"corrupt file ({error})") from None
    problem = array_problem(latents, latent_size(key), num_dimensions=3)
    if problem is None and mask is not None:
        problem = array_problem(mask, latent_size(key), num_dimensions=2)
    if problem is not None:
        raise _unusable(path, problem)
    if mask is not None:
        mask = np.ascontiguousarray(_flipped(mask, key), dtype=np.float32)
    return CachedLatents(latents.astype(np.float32, copy=False), mask)


def _unusable(path: str, reason: str) -> UserError:
    return UserError(
        f"cached latents {path} cannot be used: {reason}",
        hint="delete this file and start again to re-encode the image",
    )


def _flipped(mask: np.ndarray, key: LatentKey) -> np.ndarray:
    """The mask as the file has it, or back: a loss mask is kept as that of the unflipped image."""
    return mask[:, ::-1] if key.flipped and key.masked_by is None else mask


def write_latents(
    latents: Mapping[LatentKey, CachedLatents], fingerprint: str, folders: CacheFolders | None = None
) -> None:
    """Writes latents beside their images, keeping other entries in the files that are still valid.

    `folders`: where they are listed already. Files are replaced atomically. Raises `UserError` if a folder is not
    writable.
    """
    for path, keys in _by_file(latents, folders or CacheFolders()).items():
        try:
            with locked_folder(path.parent):
                stored = read_stored(path)
                for key in keys:
                    _replace_entry(stored, key, latents[key], fingerprint)
                write_stored(path, stored.arrays, stored.made_from)
        except OSError as error:
            raise UserError(
                f"cached latents {path} cannot be written: {error.strerror}",
                hint="free disk space, make the folder writable, or cache in memory with --cache_latents",
            ) from None


def renew_times(path: Path, keys: Collection[LatentKey], fingerprint: str) -> None:
    """Updates the times of images in a cache file, so that the next check need not read the images.

    For usable latents whose image was copied. A folder that is not writable is left as it is.
    """
    with contextlib.suppress(OSError), locked_folder(path.parent):
        stored = read_stored(path)
        for key in keys:
            if _has_current(stored, key, fingerprint):
                stored.made_from[entry_of(key)] = current_facts(key, fingerprint)
        write_stored(path, stored.arrays, stored.made_from)


def _by_file(keys: Iterable[LatentKey], folders: CacheFolders) -> dict[Path, list[LatentKey]]:
    by_file: dict[Path, list[LatentKey]] = {}
    for key in keys:
        by_file.setdefault(folders.cache_path(key), []).append(key)
    return by_file


def _replace_entry(stored: StoredArrays, key: LatentKey, latents: CachedLatents, fingerprint: str) -> None:
    arrays, entry = stored.arrays, entry_of(key)
    if not _has_current(stored, key, fingerprint):
        # flipped and unflipped latents share one `made_from`: outdated ones would count as current
        for name in ("latents", "latents_flipped", "alpha_mask", "inpaint_mask", "inpaint_mask_flipped"):
            arrays.pop(f"{name}_{entry}", None)
    arrays[_latents_name(key)] = np.asarray(latents.latents, dtype=np.float32)
    if _stores_mask(key):
        # an image without transparency has full weight everywhere
        mask = np.ones(latent_size(key)) if latents.mask is None else _flipped(latents.mask, key)
        arrays[_mask_name(key)] = np.asarray(mask, dtype=np.float32)
    arrays[f"original_size_{entry}"] = np.array(key.image_size)
    arrays[f"crop_ltrb_{entry}"] = np.array(crop_ltrb(key.placement.bucket, key.image_size))
    stored.made_from[entry] = current_facts(key, fingerprint)


def _has_current(stored: StoredArrays, key: LatentKey, fingerprint: str) -> bool:
    facts = stored.made_from.get(entry_of(key))
    return facts is not None and not differing_facts(facts, key, fingerprint)
