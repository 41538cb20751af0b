"""Cached latents of tar shards: one file for all images of a shard, with the latents of all their sizes.

An array is named by all that its latents were made from beside the shard and the VAE, which the file's facts state:
`<image>|<bucket>|<resized>|<crop>|<interpolation>|flipped|alpha`, its mask with `|mask` behind.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from library.cli.errors import UserError, plural
from library.data.caches.latent_arrays import array_problem, latent_size
from library.data.caches.shard_files import ENDING, ShardFiles, ShardFileWriter
from library.data.collector import collector_paused
from library.data.records import CachedLatents, LatentKey, Shard, size_text

logger = logging.getLogger(__name__)

_REASONS = {"shard": "of shards that have changed", "vae": "made with another VAE or precision"}
_MASK = "|mask"


def shard_latents_path(key: LatentKey) -> Path:
    """The file of the cached latents of an image in a shard, and of the shard's other images."""
    return Path(f"{cache_base(_shard(key))}{key.cache_ending.removesuffix('.npz')}_latents{ENDING}")


def cache_base(shard: Shard) -> str:
    """How the cache files of a shard begin. Raises `UserError` for a shard behind a URL without a folder for them."""
    if shard.cache_base is None:
        raise UserError(
            f"what is cached of shard {shard.path} has no folder",
            hint="give --shard_cache_dir, or shard_cache_dir in the dataset file",
        )
    return shard.cache_base


def _shard(key: LatentKey) -> Shard:
    assert key.member is not None  # the caller has asked
    return key.member.shard


def _facts(shard: Shard, fingerprint: str | None) -> dict[str, str]:
    """`fingerprint` None: of any VAE."""
    facts = {"shard": shard.identity}
    return facts if fingerprint is None else facts | {"vae": fingerprint}


def _names(key: LatentKey) -> list[str]:
    """Of the latents, and of the mask where the image's transparency is one."""
    placement = key.placement
    parts = [key.image_key, size_text(placement.bucket), size_text(placement.resized), size_text(placement.crop)]
    parts += [key.interpolation or "", "flipped" if key.flipped else "", "alpha" if key.alpha_is_mask else ""]
    name = "|".join(parts)
    return [name, name + _MASK] if key.alpha_is_mask else [name]


def read_shard_latents(files: ShardFiles, key: LatentKey, fingerprint: str | None) -> CachedLatents | None:
    """The cached latents of an image in a shard; None if there are none that were made from exactly this.

    `fingerprint`: as for `read_latents`. Raises `UserError` naming the file if it is corrupt.
    """
    path = shard_latents_path(key)
    try:
        arrays = files.read(path, _names(key), _facts(_shard(key), fingerprint))
    except (OSError, ValueError) as error:
        raise _unusable(path, str(error)) from None
    if arrays is None:
        return None
    for array, num_dimensions in zip(arrays, (3, 2)):  # noqa: B905 - there may be no mask
        problem = array_problem(array, latent_size(key), num_dimensions=num_dimensions)
        if problem is not None:
            raise _unusable(path, problem)
    return CachedLatents(arrays[0], arrays[1] if key.alpha_is_mask else None)


def _unusable(path: Path, reason: str) -> UserError:
    return UserError(
        f"cached latents {path} cannot be used: {reason}", hint="delete this file and start again to encode its images"
    )


def missing_shard_latents(keys: Iterable[LatentKey], fingerprint: str | None) -> dict[Path, list[LatentKey]]:
    """The latents that are not cached, by the file that they are missing in; says which files are stale, and why."""
    with collector_paused():  # tables of contents are many small objects, which come and go beside all the keys
        missing, stale = _missing(keys, fingerprint)
    if stale:
        reasons = ", ".join(f"{count} {reason}" for reason, count in stale.most_common())
        logger.warning("re-encoding the cached latents of %s: %s", plural(sum(stale.values()), "image"), reasons)
    return missing


def _missing(keys: Iterable[LatentKey], fingerprint: str | None) -> tuple[dict[Path, list[LatentKey]], Counter[str]]:
    """Also how many are stale, by reason."""
    by_file: dict[tuple[str, str], list[LatentKey]] = {}
    for key in keys:
        by_file.setdefault((cache_base(_shard(key)), key.cache_ending), []).append(key)
    files, stale = ShardFiles(), Counter[str]()
    missing: dict[Path, list[LatentKey]] = {}
    for of_file in by_file.values():
        path = shard_latents_path(of_file[0])
        expected = _facts(_shard(of_file[0]), fingerprint)
        try:
            facts = files.facts(path)
        except (OSError, ValueError):
            stale["corrupt"] += len(of_file)
            facts = None
        differing = [] if facts is None else [name for name, value in expected.items() if facts.get(name) != value]
        if differing:
            stale[_REASONS[differing[0]]] += len(of_file)
        is_usable = facts is not None and not differing
        lacking = _lacking(files, path, of_file) if is_usable else of_file
        if lacking:
            missing.setdefault(path, []).extend(lacking)
    return missing, stale


def _lacking(files: ShardFiles, path: Path, keys: Sequence[LatentKey]) -> list[LatentKey]:
    """Those without all of their arrays in a usable file."""
    names = [_names(key) for key in keys]
    are_there = iter(files.are_there(path, [name for each in names for name in each]).tolist())
    return [key for key, each in zip(keys, names, strict=True) if not all([next(are_there) for _ in each])]


class ShardLatentWriter:
    """Writes the cache files of shards, one after the other: `store` gets their latents in order.

    A file that is not complete when the block ends with an exception is not written.
    """

    def __init__(self, fingerprint: str):
        self._fingerprint = fingerprint
        self._path: Path | None = None
        self._shard: Shard | None = None
        self._writer: ShardFileWriter | None = None

    def store(self, latents: Mapping[LatentKey, CachedLatents]) -> None:
        """Latents of one shard. Raises `UserError` if its file cannot be written."""
        for key, each in latents.items():
            path = shard_latents_path(key)
            try:
                if path != self._path or self._writer is None:
                    self._finish()
                    self._path, self._shard = path, _shard(key)
                    self._writer = ShardFileWriter(path, _facts(self._shard, self._fingerprint))
                for name, array in zip(_names(key), _arrays(key, each), strict=True):
                    self._writer.add(name, array)
            except OSError as error:
                raise _unwritable(path, error) from None

    def __enter__(self) -> ShardLatentWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
        except OSError as error:
            assert self._path is not None  # there was something to write
            raise _unwritable(self._path, error) from None
        finally:
            if self._writer is not None:
                self._writer.close()

    def _finish(self) -> None:
        """Completes the file of a shard, with what it had before and is still valid."""
        if self._writer is None or self._path is None or self._shard is None:
            return
        try:
            facts = ShardFiles().facts(self._path)
        except ValueError:
            facts = None
        if facts == _facts(self._shard, self._fingerprint):
            self._writer.copy_others(self._path)
        self._writer.finish()
        self._writer = None


def _arrays(key: LatentKey, latents: CachedLatents) -> Sequence[np.ndarray]:
    if not key.alpha_is_mask:
        return [latents.latents]
    # an image without transparency has full weight everywhere
    return [latents.latents, np.ones(latent_size(key)) if latents.mask is None else latents.mask]


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"cached latents {path} cannot be written: {error.strerror}",
        hint="free disk space, give a writable --shard_cache_dir, or cache in memory with --cache_latents",
    )
