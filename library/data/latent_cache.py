"""Latents in files beside the pictures, in the layout that other trainers read.

A file `<stem>_<W>x<H>_sd.npz` (W and H of the picture, four digits) holds, for each latent size h x w:
`latents_<h>x<w>` and `latents_flipped_<h>x<w>` (C, h, w), `original_size_<h>x<w>` (width, height) and
`crop_ltrb_<h>x<w>`. We add `made_from_<h>x<w>`, a JSON text that says what the latents were made from: latents for
which it differs, or that lack it, are never trained on.

Pictures of one stem with several endings (a.png, a.jpg) would share a file; theirs have the whole name in front:
`a.png_<W>x<H>_sd.npz`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from library.cli.atomic_files import atomic_path
from library.cli.errors import UserError
from library.data.buckets import PIXELS_PER_LATENT, crop_ltrb
from library.data.pictures import IMAGE_ENDINGS
from library.data.plan import TrainingData
from library.data.randomness import derive_seed
from library.data.records import CachedLatents, LatentKey

logger = logging.getLogger(__name__)

_DAMAGE_ERRORS = (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error)


def latent_seed(key: LatentKey) -> int:
    """The seed that this latent is sampled with: the same wherever the folder lies and whenever it was copied."""
    placement = key.placement
    numbers = (*key.image_size, *placement.bucket, *placement.resized, *placement.crop, int(key.flipped))
    return derive_seed("latent", key.image_key, *numbers)


def cache_path(key: LatentKey) -> Path:
    """The file beside the picture that holds its latents."""
    picture = Path(key.path)
    width, height = key.image_size
    front = picture.name if _has_twin(picture) else picture.stem
    return picture.with_name(f"{front}_{width:04d}x{height:04d}_sd.npz")


def _has_twin(picture: Path) -> bool:
    """Whether another picture has the same name but for the ending."""
    endings = {spelling for ending in IMAGE_ENDINGS for spelling in (ending, ending.upper())} - {picture.suffix}
    twins = (picture.with_name(picture.stem + ending) for ending in sorted(endings))
    return any(twin.is_file() and not _is_same_name(twin, picture) for twin in twins)


def _is_same_name(twin: Path, picture: Path) -> bool:
    """Whether both are one file on a file system without letter case, where a.PNG is a.png itself."""
    if twin.name.lower() != picture.name.lower():
        return False
    return not picture.exists() or os.path.samefile(twin, picture)


def _suffix(key: LatentKey) -> str:
    width, height = key.placement.bucket
    return f"_{height // PIXELS_PER_LATENT}x{width // PIXELS_PER_LATENT}"


def _latents_name(key: LatentKey) -> str:
    return ("latents_flipped" if key.flipped else "latents") + _suffix(key)


def _made_from(key: LatentKey, fingerprint: str) -> str:
    facts = {
        "picture": Path(key.path).name,
        "image_size": key.image_size,
        "mtime_ns": key.mtime_ns,
        "bucket": key.placement.bucket,
        "resized": key.placement.resized,
        "crop": key.placement.crop,
        "vae": fingerprint,
    }
    return json.dumps(facts, sort_keys=True)


def read_latents(key: LatentKey, fingerprint: str) -> CachedLatents | None:
    """The cached latents; None if there are none that were made from just this.

    A damaged file counts as none, with a warning.
    """
    path = cache_path(key)
    name, suffix = _latents_name(key), _suffix(key)
    try:
        with np.load(path, allow_pickle=False) as file:
            if not {name, f"made_from{suffix}"} <= set(file.files):
                return None
            if str(file[f"made_from{suffix}"]) != _made_from(key, fingerprint):
                return None
            latents = file[name]
    except FileNotFoundError:
        return None
    except _DAMAGE_ERRORS as error:
        logger.warning("the cached latents %s are damaged and are made anew (%s)", path, error)
        return None
    if not _is_sound(latents, key):
        logger.warning("the cached latents %s are not valid numbers of the right size and are made anew", path)
        return None
    return CachedLatents(latents.astype(np.float32, copy=False))


def _is_sound(latents: np.ndarray, key: LatentKey) -> bool:
    width, height = key.placement.bucket
    size = (height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)
    is_number = np.issubdtype(latents.dtype, np.floating)
    return is_number and latents.ndim == 3 and latents.shape[1:] == size and bool(np.isfinite(latents).all())


def write_latents(latents: Mapping[LatentKey, CachedLatents], fingerprint: str) -> None:
    """Writes latents beside their pictures, keeping what else the files hold that is not outdated by it.

    A file is whole or as it was before. Raises `UserError` if a folder cannot be written to.
    """
    by_file: dict[Path, list[LatentKey]] = {}
    for key in latents:
        by_file.setdefault(cache_path(key), []).append(key)
    for path, keys in by_file.items():
        arrays = _held_arrays(path)
        for key in keys:
            _replace_entry(arrays, key, latents[key], fingerprint)
        try:
            with atomic_path(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, **arrays)
        except OSError as error:
            raise UserError(
                f"cached latents {path} cannot be written: {error.strerror}",
                hint="make the folder writable, or use --cache_latents without --cache_latents_to_disk",
            ) from None


def _held_arrays(path: Path) -> dict[str, np.ndarray]:
    with contextlib.suppress(*_DAMAGE_ERRORS), np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
    return {}


def _replace_entry(arrays: dict[str, Any], key: LatentKey, latents: CachedLatents, fingerprint: str) -> None:
    suffix, made_from = _suffix(key), _made_from(key, fingerprint)
    if str(arrays.get(f"made_from{suffix}")) != made_from:
        # both orientations share one `made_from`: the other one would pass for new
        for name in ("latents", "latents_flipped"):
            arrays.pop(name + suffix, None)
    arrays[_latents_name(key)] = np.asarray(latents.latents, dtype=np.float32)
    arrays[f"original_size{suffix}"] = np.array(key.image_size)
    arrays[f"crop_ltrb{suffix}"] = np.array(crop_ltrb(key.placement.bucket, key.image_size))
    arrays[f"made_from{suffix}"] = np.array(made_from)


def latents_to_make(data: TrainingData, fingerprint: str) -> list[LatentKey]:
    """Those latents that training needs and that no file holds, those of one bucket size together.

    Raises `UserError` if two datasets place a picture differently at one size, for which a file has one place only.
    """
    keys = data.latent_keys()
    _check_one_placement(keys)
    return [key for key in keys if read_latents(key, fingerprint) is None]


def _check_one_placement(keys: Iterable[LatentKey]) -> None:
    seen: dict[tuple[str, str], LatentKey] = {}
    for key in keys:
        first = seen.setdefault((key.path, _suffix(key)), key)
        if first.placement != key.placement:
            raise UserError(
                f"--cache_latents_to_disk: two datasets place {key.path} differently in buckets of one size",
                hint="use --cache_latents alone, or give both datasets the same bucket settings",
            )
