"""Names of cache files, and which images would share them.

Latents: `<stem>_<W>x<H>_sd.npz`, as other programs name them. Images that would share a file, such as a.png and a.jpg,
have their whole name in it instead: `a.png_<W>x<H>_sd.npz`. Text encoder outputs: `<image>_sd_te.npz`. The endings are
the model family's. Where an image's name leaves no room for an ending, a hash stands in for it.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from library.data.images.image_files import IMAGE_ENDINGS
from library.data.records import LatentKey


@dataclass(frozen=True)
class CacheFormat:
    """How a model family's cached text encoder outputs are named; those of latents: `LatentFormat`.

    `text_by_stem`: files of text encoder outputs lack the image's extension, and the arrays of their first caption a
    number: as other programs write them for the family.
    """

    text_ending: str = "_sd_te.npz"
    text_by_stem: bool = False


SD_CACHES = CacheFormat()
_LONGEST_NAME = 255  # bytes that file systems take
_DIGEST_BYTES = 16


def cache_names(key: LatentKey) -> tuple[str, str]:
    """The possible names of the cache file of an image: with the image's extension, and without it."""
    name = os.path.basename(key.path)
    width, height = key.image_size
    size = f"_{width:04d}x{height:04d}{key.cache_ending}"
    return _named(name, size), _named(os.path.splitext(name)[0], size)


def text_cache_path(image: str, format: CacheFormat = SD_CACHES) -> Path:
    """The file of an image's cached text encoder outputs."""
    folder, name = os.path.split(image)
    return Path(folder, _named(os.path.splitext(name)[0] if format.text_by_stem else name, format.text_ending))


def _named(stem: str, ending: str) -> str:
    if len(os.fsencode(stem + ending)) <= _LONGEST_NAME:
        return stem + ending
    return hashlib.blake2b(os.fsencode(stem), digest_size=_DIGEST_BYTES).hexdigest() + ending


@dataclass(frozen=True)
class CacheFolder:
    """What a folder of images holds."""

    cache_files: frozenset[str]
    images: frozenset[str]  # names in lower case: some file systems do not tell them apart
    num_images: Counter[str]  # with each stem, in lower case

    def shares_name(self, name: str) -> bool:
        """Whether another image may have the same cache file as the image `name` if that lacks the extension.

        That is one of the same stem (a.png, a.jpg), or one whose whole name is the stem (a.jpg of a.jpg.png).
        """
        stem = os.path.splitext(name)[0].lower()
        is_there = name.lower() in self.images
        return self.num_images[stem] > is_there or stem in self.images


class CacheFolders:
    """The folders of images, each listed once."""

    def __init__(self) -> None:
        self._folders: dict[str, CacheFolder] = {}

    def __iter__(self) -> Iterator[str]:
        """The paths of the folders that were listed."""
        return iter(tuple(self._folders))

    def list(self, path: str) -> CacheFolder:
        """The content of a folder."""
        if path not in self._folders:
            self._folders[path] = _list_folder(path)
        return self._folders[path]

    def cache_path(self, key: LatentKey) -> Path:
        """The cache file beside the image that its latents are written to."""
        folder, name = os.path.split(key.path)
        with_ending, without_ending = cache_names(key)
        return Path(folder, with_ending if self.list(folder).shares_name(name) else without_ending)


def _list_folder(folder: str) -> CacheFolder:
    try:
        names = os.listdir(folder or ".")
    except OSError:
        names = []  # decoding its images will report the error
    images = [name.lower() for name in names if name.lower().endswith(IMAGE_ENDINGS)]
    stems = Counter(os.path.splitext(name)[0] for name in images)
    return CacheFolder(frozenset(name for name in names if name.endswith(".npz")), frozenset(images), stems)
