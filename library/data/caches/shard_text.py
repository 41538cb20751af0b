"""Cached text encoder outputs of tar shards: one file for all captions of a shard, each named by its digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from library.cli.errors import UserError
from library.data.caches.cache_names import CacheFormat
from library.data.caches.shard_files import ENDING, ShardFiles, ShardFileWriter
from library.data.caches.shard_latents import cache_base
from library.data.records import Shard


def shard_text_path(shard: Shard, format: CacheFormat) -> Path:
    return Path(cache_base(shard) + format.text_ending.removesuffix(".npz") + ENDING)


def _names(caption: str, names: Sequence[str]) -> list[str]:
    digest = hashlib.blake2b(caption.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    return [f"{digest}|{name}" for name in names]


def missing_captions(path: Path, captions: Iterable[str], encoder: str, names: Sequence[str]) -> list[str]:
    """The captions that this encoder has not encoded; `names`: of the arrays of each."""
    files = ShardFiles()
    try:
        if files.facts(path) != {"encoder": encoder}:
            return list(captions)
    except (OSError, ValueError):
        return list(captions)
    each = list(captions)
    are_there = iter(files.are_there(path, [name for caption in each for name in _names(caption, names)]).tolist())
    return [caption for caption in each if not all([next(are_there) for _ in names])]


def read_caption(
    files: ShardFiles, path: Path, caption: str, encoder: str, names: Sequence[str]
) -> Mapping[str, np.ndarray] | None:
    """The arrays `names` of a caption; None if they are not cached, or not usable."""
    try:
        arrays = files.read(path, _names(caption, names), {"encoder": encoder})
    except (OSError, ValueError):
        return None
    if arrays is None or not all(np.isfinite(array).all() for array in arrays):
        return None
    return dict(zip(names, arrays, strict=True))


def write_captions(
    path: Path, outputs: Iterable[tuple[str, Mapping[str, np.ndarray]]], kept: Iterable[str], encoder: str
) -> None:
    """Writes the arrays of captions, with those of the captions `kept` that the file has; one is in memory at a time.

    Raises `UserError` if that is not possible.
    """
    try:
        writer = ShardFileWriter(path, {"encoder": encoder})
        try:
            for caption, arrays in outputs:
                for name, array in zip(_names(caption, list(arrays)), arrays.values(), strict=True):
                    writer.add(name, array)
            prefixes = {_names(caption, ("",))[0] for caption in kept}
            if prefixes:
                writer.copy_others(path, lambda name: name.partition("|")[0] + "|" in prefixes)
            writer.finish()
        finally:
            writer.close()
    except OSError as error:
        raise UserError(
            f"cached text encoder outputs {path} cannot be written: {error.strerror}",
            hint="free disk space, give a writable --shard_cache_dir, or use --cache_text_encoder_outputs alone",
        ) from None
