"""Cached latents: .npz files beside the images (`--cache_latents_to_disk`), in the layout that other trainers read.

A file `<stem>_<W>x<H>_sd.npz` (W and H of the image, four digits) holds, for each latent size h x w:
`latents_<h>x<w>` and `latents_flipped_<h>x<w>` (C, h, w), `original_size_<h>x<w>` (width, height),
`crop_ltrb_<h>x<w>` and, with `alpha_mask`, `alpha_mask_<h>x<w>` (h, w) of the unflipped image. We add
`made_from_<h>x<w>`, a JSON text of what the latents were made from: latents for which it differs, or that lack it, are
not used unless the user trusts them (`--skip_cache_check`).

An image is unchanged if its mtime is, or else its content: a copied dataset keeps its latents.

Images of one stem with several extensions (a.png, a.jpg) would share a file; theirs begin with the whole name:
`a.png_<W>x<H>_sd.npz`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from library.cli.atomic_files import atomic_path
from library.cli.errors import UserError
from library.data.buckets import crop_ltrb
from library.data.caches.latent_arrays import DAMAGE_ERRORS, array_problem, latent_size, opened_arrays
from library.data.caches.prepared_latents import read_prepared
from library.data.images.image_files import IMAGE_ENDINGS
from library.data.randomness import derive_seed
from library.data.records import CachedLatents, LatentKey

_DIGEST_BYTES = 16


def latent_seed(key: LatentKey) -> int:
    """The seed of the VAE's random sample: independent of the location of the folder and of mtimes."""
    placement = key.placement
    numbers = (*key.image_size, *placement.bucket, *placement.resized, *placement.crop, int(key.flipped))
    return derive_seed("latent", key.image_key, *numbers)


def cache_names(key: LatentKey) -> tuple[str, str]:
    """The possible names of the cache file of an image: with the image's extension, and without it."""
    name = os.path.basename(key.path)
    width, height = key.image_size
    size = f"_{width:04d}x{height:04d}_sd.npz"
    return name + size, os.path.splitext(name)[0] + size


def cache_path(key: LatentKey) -> Path:
    """The cache file beside the image that its latents are written to."""
    image = Path(key.path)
    with_ending, without_ending = cache_names(key)
    return image.with_name(with_ending if _has_twin(image) else without_ending)


def _has_twin(image: Path) -> bool:
    """Whether another image has the same stem, with another extension."""
    endings = {spelling for ending in IMAGE_ENDINGS for spelling in (ending, ending.upper())} - {image.suffix}
    twins = (image.with_name(image.stem + ending) for ending in sorted(endings))
    return any(twin.is_file() and not _is_same_name(twin, image) for twin in twins)


def _is_same_name(twin: Path, image: Path) -> bool:
    """Whether both are one file on a case-insensitive file system, where a.PNG is a.png itself."""
    if twin.name.lower() != image.name.lower():
        return False
    return not image.exists() or os.path.samefile(twin, image)


def entry_suffix(key: LatentKey) -> str:
    """The suffix of the names of arrays of this latent size."""
    return "_{}x{}".format(*latent_size(key))


def made_from_name(key: LatentKey) -> str:
    """The name of the text of what the latents of this size were made from."""
    return "made_from" + entry_suffix(key)


def array_names(key: LatentKey) -> set[str]:
    """The names of the arrays that training reads for this key."""
    names = {_latents_name(key)}
    return names | {_mask_name(key)} if key.alpha_is_mask else names


def _latents_name(key: LatentKey) -> str:
    return ("latents_flipped" if key.flipped else "latents") + entry_suffix(key)


def _mask_name(key: LatentKey) -> str:
    return "alpha_mask" + entry_suffix(key)


def _made_from(key: LatentKey, fingerprint: str) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "image": os.path.basename(key.path),
        "image_size": list(key.image_size),
        "mtime_ns": key.mtime_ns,
        "bucket": list(key.placement.bucket),
        "resized": list(key.placement.resized),
        "crop": list(key.placement.crop),
        "vae": fingerprint,
    }
    # only if they are not the default, so that older files, which do not have them, stay valid
    if key.interpolation is not None:
        facts["interpolation"] = key.interpolation
    if key.alpha_is_mask:
        facts["alpha_is_mask"] = True
    return facts


def differing_facts(text: str, key: LatentKey, fingerprint: str) -> frozenset[str]:
    """The names of the entries in a `made_from` text that differ from `key`; none if its latents can be used.

    If only the mtime differs, the content of the image decides; `has_new_mtime` tells this case apart.
    Raises `ValueError` if the text is corrupt.
    """
    stored = json.loads(text)
    if not isinstance(stored, dict):
        raise ValueError("made_from is not an object")
    digest = stored.pop("content", None)
    expected = _made_from(key, fingerprint)
    differing = frozenset(name for name in stored.keys() | expected.keys() if stored.get(name) != expected.get(name))
    if differing == {"mtime_ns"} and digest is not None and digest == _digest(key.path):
        return frozenset()
    return differing


def has_new_mtime(text: str, key: LatentKey) -> bool:
    """Whether usable latents were made when the image had another mtime."""
    return json.loads(text).get("mtime_ns") != key.mtime_ns


def _digest(path: str) -> str | None:
    """The hash of the content of an image file; None if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.blake2b(file.read(), digest_size=_DIGEST_BYTES).hexdigest()
    except OSError:
        return None


def read_latents(key: LatentKey, fingerprint: str | None) -> CachedLatents | None:
    """The cached or legacy .npz latents; None if there are none that were made from exactly this.

    `fingerprint`: of the VAE that they must have been made with; None: any latents of the right name are used.
    Raises `UserError` naming the file if it is corrupt or has latents of another size.
    """
    if key.prepared_path is not None:
        return read_prepared(key)
    folder = os.path.dirname(key.path)
    # both names, since an image of the same stem may have been added or removed; `made_from` has the image's name
    paths = (os.path.join(folder, name) for name in cache_names(key))
    found = (_read_entry(path, key, fingerprint) for path in paths)
    return next((latents for latents in found if latents is not None), None)


def _read_entry(path: str, key: LatentKey, fingerprint: str | None) -> CachedLatents | None:
    try:
        with opened_arrays(path) as file:
            if not array_names(key) <= set(file):
                return None
            if fingerprint is not None and not _is_usable(file, key, fingerprint):
                return None
            latents = file[_latents_name(key)]
            mask = file[_mask_name(key)] if key.alpha_is_mask else None
    except FileNotFoundError:
        return None
    except DAMAGE_ERRORS as error:
        raise _unusable(path, f"corrupt file ({error})") from None
    problem = array_problem(latents, latent_size(key), num_dimensions=3)
    if problem is None and mask is not None:
        problem = array_problem(mask, latent_size(key), num_dimensions=2)
    if problem is not None:
        raise _unusable(path, problem)
    if mask is not None:
        mask = np.ascontiguousarray(_flipped(mask, key), dtype=np.float32)
    return CachedLatents(latents.astype(np.float32, copy=False), mask)


def _is_usable(file: Mapping[str, np.ndarray], key: LatentKey, fingerprint: str) -> bool:
    name = made_from_name(key)
    return name in file and not differing_facts(str(file[name]), key, fingerprint)


def _unusable(path: str, reason: str) -> UserError:
    return UserError(
        f"cached latents {path} cannot be used: {reason}",
        hint="delete this file and start again to re-encode the image",
    )


def _flipped(mask: np.ndarray, key: LatentKey) -> np.ndarray:
    """The mask, flipped if the key is of the flipped image; undoes itself."""
    return mask[:, ::-1] if key.flipped else mask


def write_latents(latents: Mapping[LatentKey, CachedLatents], fingerprint: str) -> None:
    """Writes latents beside their images, keeping other arrays in the files that are still valid.

    Files are replaced atomically. Raises `UserError` if a folder is not writable.
    """
    for path, keys in _by_file(latents).items():
        arrays = _stored_arrays(path)
        for key in keys:
            _replace_entry(arrays, key, latents[key], fingerprint)
        try:
            _save(path, arrays)
        except OSError as error:
            raise UserError(
                f"cached latents {path} cannot be written: {error.strerror}",
                hint="free disk space, make the folder writable, or cache in memory with --cache_latents",
            ) from None


def renew_times(path: Path, keys: Collection[LatentKey], fingerprint: str) -> None:
    """Updates the mtimes of images in a cache file, so that the next check need not read the images.

    For usable latents whose image was copied. A folder that is not writable is left as it is.
    """
    arrays = _stored_arrays(path)
    for key in keys:
        if made_from_name(key) in arrays and not differing_facts(str(arrays[made_from_name(key)]), key, fingerprint):
            arrays[made_from_name(key)] = np.array(_made_from_text(key, fingerprint))
    with contextlib.suppress(OSError):
        _save(path, arrays)


def _by_file(keys: Iterable[LatentKey]) -> dict[Path, list[LatentKey]]:
    by_file: dict[Path, list[LatentKey]] = {}
    for key in keys:
        by_file.setdefault(cache_path(key), []).append(key)
    return by_file


def _save(path: Path, arrays: Mapping[str, Any]) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def _stored_arrays(path: Path) -> dict[str, np.ndarray]:
    with contextlib.suppress(*DAMAGE_ERRORS), opened_arrays(path) as file:
        return dict(file)
    return {}


def _replace_entry(arrays: dict[str, Any], key: LatentKey, latents: CachedLatents, fingerprint: str) -> None:
    suffix = entry_suffix(key)
    if not _has_current(arrays, key, fingerprint):
        # flipped and unflipped latents share one `made_from`: outdated ones would count as current
        for name in ("latents", "latents_flipped", "alpha_mask"):
            arrays.pop(name + suffix, None)
    arrays[_latents_name(key)] = np.asarray(latents.latents, dtype=np.float32)
    if key.alpha_is_mask:
        # an image without transparency has full weight everywhere
        mask = np.ones(latent_size(key)) if latents.mask is None else _flipped(latents.mask, key)
        arrays[_mask_name(key)] = np.asarray(mask, dtype=np.float32)
    arrays[f"original_size{suffix}"] = np.array(key.image_size)
    arrays[f"crop_ltrb{suffix}"] = np.array(crop_ltrb(key.placement.bucket, key.image_size))
    arrays[made_from_name(key)] = np.array(_made_from_text(key, fingerprint))


def _has_current(arrays: Mapping[str, np.ndarray], key: LatentKey, fingerprint: str) -> bool:
    try:
        return _is_usable(arrays, key, fingerprint)
    except ValueError:
        return False


def _made_from_text(key: LatentKey, fingerprint: str) -> str:
    facts = _made_from(key, fingerprint)
    digest = _digest(key.path)
    # if the image has changed since the scan, it is unknown which content was encoded
    if digest is not None and os.stat(key.path).st_mtime_ns == key.mtime_ns:
        facts["content"] = digest
    return json.dumps(facts, sort_keys=True)
