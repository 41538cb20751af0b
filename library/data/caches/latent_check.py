"""Checks cached latents: which images must be encoded before training. Reads no arrays.

Each folder is listed once, and of each file only the table of contents and `made_from`, the text of what its latents
were made from, are read. The arrays are validated when they are read for training.
"""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from library.cli.errors import UserError
from library.data.caches.latent_arrays import DAMAGE_ERRORS
from library.data.caches.latent_cache import (
    array_names,
    cache_names,
    differing_facts,
    entry_suffix,
    has_new_mtime,
    made_from_name,
)
from library.data.images.image_files import IMAGE_ENDINGS
from library.data.records import LatentKey

_NUM_THREADS = 2  # one parses a file while the other waits for the disk; more only wait for each other
_PART_SIZE = 256
_NPY_UTF32 = b"'descr': '<U"  # in the header of the text's array, as every NumPy of a little-endian machine writes it

_CORRUPT = "corrupt"
_FOREIGN = "from another program, which does not record what they were made from (--skip_cache_check trusts them)"
_REASONS = {"vae": "made with another VAE or precision", "mtime_ns": "of images that have changed"}
_OTHER_SETTINGS = "made with another size, crop or interpolation"


@dataclass
class CacheCheck:
    """The result of checking the cache files."""

    missing: list[LatentKey] = field(default_factory=list)  # in the order of the keys
    copied: dict[Path, list[LatentKey]] = field(default_factory=dict)  # usable, of images with another mtime
    outdated: Counter[str] = field(default_factory=Counter)  # entries that must be re-encoded, by reason

    def summary(self) -> str | None:
        """One line: how many cached latents are re-encoded, and why; None if none are."""
        if not self.outdated:
            return None
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.outdated.most_common())
        total = sum(self.outdated.values())
        return f"re-encoding the cached latents of {total} image{'s'[: total > 1]}: {reasons}"


def check_caches(keys: Iterable[LatentKey], fingerprint: str | None) -> CacheCheck:
    """Which latents are not cached, legacy .npz latents excepted.

    `fingerprint`: of the VAE that they must have been made with; None: files are trusted by the names of their arrays.
    Raises `UserError` if two datasets crop an image differently at one size, which a file can have only once.
    """
    entries = _by_entry(key for key in keys if key.prepared_path is None)
    folders = _list_folders(entries)
    parts = [entries[start : start + _PART_SIZE] for start in range(0, len(entries), _PART_SIZE)]
    check = CacheCheck()
    with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="cache-check") as pool:
        for part in pool.map(lambda part: [_check_entry(entry, folders, fingerprint) for entry in part], parts):
            for finding in part:
                _add(check, finding)
    return check


def _by_entry(keys: Iterable[LatentKey]) -> list[list[LatentKey]]:
    """The keys that share an entry of a file: the flipped and unflipped latents of an image at one size."""
    entries: dict[tuple[str, str], list[LatentKey]] = {}
    for key in keys:
        entry = entries.setdefault((key.path, entry_suffix(key)), [])
        entry.append(key)
        if _what_is_shared(entry[0]) != _what_is_shared(key):
            raise UserError(
                f"--cache_latents_to_disk: two datasets crop {key.path} differently for the same bucket size",
                hint="use --cache_latents alone, or give both datasets the same bucket, resizing and mask settings",
            )
    return list(entries.values())


def _what_is_shared(key: LatentKey) -> tuple:
    return key.placement, key.interpolation, key.alpha_is_mask


@dataclass(frozen=True)
class _Folder:
    names: frozenset[str]  # of files with latents
    images: frozenset[str]  # in lower case
    num_images: Counter[str]  # with each stem, in lower case


def _list_folders(entries: Sequence[Sequence[LatentKey]]) -> dict[str, _Folder]:
    return {folder: _list_folder(folder) for folder in {os.path.dirname(entry[0].path) for entry in entries}}


def _list_folder(folder: str) -> _Folder:
    try:
        names = os.listdir(folder or ".")
    except OSError:
        names = []  # decoding its images will report the error
    images = [name.lower() for name in names if name.lower().endswith(IMAGE_ENDINGS)]
    stems = Counter(os.path.splitext(name)[0] for name in images)
    return _Folder(frozenset(name for name in names if name.endswith("_sd.npz")), frozenset(images), stems)


@dataclass
class _Finding:
    """Which latents of an entry are missing, and why, if there is a file."""

    missing: Sequence[LatentKey]
    reason: str | None = None
    copied: tuple[Path, LatentKey] | None = None


def _check_entry(keys: Sequence[LatentKey], folders: dict[str, _Folder], fingerprint: str | None) -> _Finding:
    """`keys`: of one entry."""
    first = keys[0]
    folder, name = os.path.split(first.path)
    listed = folders[folder]
    with_ending, without_ending = cache_names(first)
    names = [with_ending, without_ending]
    if fingerprint is None and _has_twin(name, listed):
        names.remove(without_ending)  # it may be of the other image, and its content is not checked
    finding = _Finding(keys)
    for name in names:
        if name in listed.names:
            found = _check_file(os.path.join(folder, name), keys, fingerprint)
            if len(found.missing) < len(finding.missing):
                return found
            finding = found if found.reason else finding
    return finding


def _has_twin(name: str, folder: _Folder) -> bool:
    itself = name.lower() in folder.images
    return folder.num_images[os.path.splitext(name)[0].lower()] > itself


def _check_file(path: str, keys: Sequence[LatentKey], fingerprint: str | None) -> _Finding:
    first = keys[0]
    try:
        with zipfile.ZipFile(path) as file:
            names = {name.removesuffix(".npy") for name in file.namelist()}
            has_text = made_from_name(first) in names
            text = _read_text(file, made_from_name(first)) if has_text and fingerprint is not None else ""
    except FileNotFoundError:
        return _Finding(keys)
    except DAMAGE_ERRORS:
        return _Finding(keys, _CORRUPT)
    missing = [key for key in keys if not array_names(key) <= names]
    if fingerprint is None:
        # encoding only one of flipped and unflipped would invalidate the other, trusted one
        return _Finding(keys if missing else [])
    if len(missing) == len(keys):
        return _Finding(keys)
    if not has_text:
        return _Finding(keys, _FOREIGN)
    try:
        differing = differing_facts(text, first, fingerprint)
        copied = (Path(path), first) if not differing and has_new_mtime(text, first) else None
    except ValueError:
        return _Finding(keys, _CORRUPT)
    if not differing:
        return _Finding(missing, copied=copied)
    reasons = (reason for name, reason in _REASONS.items() if name in differing)
    return _Finding(keys, next(reasons, _OTHER_SETTINGS))


def _read_text(file: zipfile.ZipFile, name: str) -> str:
    """A text that was saved as an array, read without NumPy, whose header parser takes longer than all the rest."""
    header, _, content = file.read(f"{name}.npy").partition(b"\n")
    if _NPY_UTF32 not in header:
        raise ValueError("not a text")
    return content.decode("utf-32-le").rstrip("\0")


def _add(check: CacheCheck, finding: _Finding) -> None:
    check.missing += finding.missing
    if finding.reason is not None:
        check.outdated[finding.reason] += 1
    if finding.copied is not None:
        path, key = finding.copied
        check.copied.setdefault(path, []).append(key)
