"""Checks cached latents: which images must be encoded before training. Reads no arrays.

Each folder is listed once, and of each file only the table of contents and `made_from.json`, what its latents were made
from, are read. The arrays are validated when they are read for training.
"""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from library.cli.damaged_files import DAMAGED_FILE_ERRORS
from library.cli.errors import UserError, plural
from library.data.caches.cache_names import CacheFolders, cache_names
from library.data.caches.latent_cache import entry_of, needed_arrays
from library.data.caches.latent_facts import differing_facts, has_new_times
from library.data.caches.npz_files import array_names, read_made_from
from library.data.records import LatentKey

_NUM_THREADS = 2  # one parses a file while the other waits for the disk; more only wait for each other
_PART_SIZE = 256

_CORRUPT = "corrupt"
_FOREIGN = "from another program, which does not record what they were made from (--skip_cache_check trusts them)"
_CHANGED = "of images that have changed"
_REASONS = {
    "vae": "made with another VAE or precision",
    **dict.fromkeys(("mtime_ns", "num_bytes", "ctime_ns"), _CHANGED),
    "mask": "of images whose masks have changed",
}
_OTHER_SETTINGS = "made with another size, crop or interpolation"


@dataclass
class CacheCheck:
    """The result of checking the cache files."""

    missing: list[LatentKey] = field(default_factory=list)  # in the order of the keys
    copied: dict[Path, list[LatentKey]] = field(default_factory=dict)  # usable, of images with other times
    outdated: Counter[str] = field(default_factory=Counter)  # entries that must be re-encoded, by reason
    folders: CacheFolders = field(default_factory=CacheFolders)  # of the images

    def summary(self) -> str | None:
        """One line: how many cached latents are re-encoded, and why; None if none are."""
        if not self.outdated:
            return None
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.outdated.most_common())
        total = sum(self.outdated.values())
        return f"re-encoding the cached latents of {plural(total, 'image')}: {reasons}"


def check_caches(keys: Iterable[LatentKey], fingerprint: str | None) -> CacheCheck:
    """Which latents are not cached, legacy .npz latents excepted.

    `fingerprint`: of the VAE that they must have been made with; None: files are trusted by the names of their arrays.
    Raises `UserError` if two datasets have different latents of an image at one size, which a file can have only once.
    """
    entries = _by_entry(key for key in keys if key.legacy_npz_path is None)
    parts = [entries[start : start + _PART_SIZE] for start in range(0, len(entries), _PART_SIZE)]
    folders = CacheFolders()
    for folder in {os.path.dirname(entry[0].path) for entry in entries}:
        folders.list(folder)  # here: the threads only look them up
    check = CacheCheck(folders=folders)
    with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="cache-check") as pool:
        for part in pool.map(lambda part: [_check_entry(entry, folders, fingerprint) for entry in part], parts):
            for finding in part:
                _add(check, finding)
    return check


def _by_entry(keys: Iterable[LatentKey]) -> list[list[LatentKey]]:
    """The keys that share an entry of a file: the flipped and unflipped latents of an image at one size."""
    entries: dict[tuple[str, str, str], list[LatentKey]] = {}
    for key in keys:
        entry = entries.setdefault((key.path, key.cache_ending, entry_of(key)), [])
        entry.append(key)
        if _what_is_shared(entry[0]) != _what_is_shared(key):
            raise UserError(
                f"--cache_latents_to_disk: two datasets crop {key.path} differently for the same bucket size",
                hint="use --cache_latents alone, or give both datasets the same bucket, resizing and mask settings",
            )
        if entry[0].image_key != key.image_key:
            raise UserError(
                f"--cache_latents_to_disk: {key.path} is {entry[0].image_key} in one dataset and {key.image_key} in"
                " another, which gives it two samples of the VAE",
                hint="use --cache_latents alone, or give both the same image_dir",
            )
    return list(entries.values())


def _what_is_shared(key: LatentKey) -> tuple:
    return key.placement, key.interpolation, key.alpha_is_mask, key.masked_by and key.mask_path


@dataclass
class _Finding:
    """Which latents of an entry are missing, and why, if there is a file."""

    missing: Sequence[LatentKey]
    reason: str | None = None
    copied: tuple[Path, LatentKey] | None = None


def _check_entry(keys: Sequence[LatentKey], folders: CacheFolders, fingerprint: str | None) -> _Finding:
    """`keys`: of one entry."""
    first = keys[0]
    folder, name = os.path.split(first.path)
    listed = folders.list(folder)
    with_ending, without_ending = cache_names(first)
    names = [with_ending, without_ending]
    if fingerprint is None and listed.shares_name(name):
        names.remove(without_ending)  # it may be of the other image, and its content is not checked
    finding = _Finding(keys)
    for name in names:
        if name in listed.cache_files:
            found = _check_file(os.path.join(folder, name), keys, fingerprint)
            if len(found.missing) < len(finding.missing):
                return found
            finding = found if found.reason else finding
    return finding


def _check_file(path: str, keys: Sequence[LatentKey], fingerprint: str | None) -> _Finding:
    first = keys[0]
    try:
        with zipfile.ZipFile(path) as file:
            names = array_names(file)
            facts = None if fingerprint is None else read_made_from(file, names, entry_of(first))
    except FileNotFoundError:
        return _Finding(keys)
    except DAMAGED_FILE_ERRORS:
        return _Finding(keys, _CORRUPT)
    missing = [key for key in keys if not needed_arrays(key) <= names]
    if fingerprint is None:
        # encoding only one of flipped and unflipped would invalidate the other, trusted one
        return _Finding(keys if missing else [])
    if len(missing) == len(keys):
        return _Finding(keys)
    if facts is None:
        return _Finding(keys, _FOREIGN)
    differing = differing_facts(facts, first, fingerprint)
    if not differing:
        return _Finding(missing, copied=(Path(path), first) if has_new_times(facts, first) else None)
    reasons = (reason for name, reason in _REASONS.items() if name in differing)
    return _Finding(keys, next(reasons, _OTHER_SETTINGS))


def _add(check: CacheCheck, finding: _Finding) -> None:
    check.missing += finding.missing
    if finding.reason is not None:
        check.outdated[finding.reason] += 1
    if finding.copied is not None:
        path, key = finding.copied
        check.copied.setdefault(path, []).append(key)
