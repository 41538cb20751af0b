"""Cached listings of folders: which files and images exist, each folder listed once."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from library.data.images.image_files import IMAGE_ENDINGS

_ENDINGS = frozenset(ending.removeprefix(".") for ending in IMAGE_ENDINGS)


def is_image_name(name: str) -> bool:
    """Whether a file name is that of an image."""
    # hidden names are leftovers of file managers, such as ._photo.jpg
    return name.rpartition(".")[2].lower() in _ENDINGS and "." in name and name[0] != "."


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry of a folder is a folder; a link that cannot be followed counts as a file."""
    try:
        return entry.is_dir()
    except OSError:
        return False


@dataclass
class _Listing:
    files: frozenset[str]
    images: dict[str, list[str]] = field(default_factory=dict)  # names by stem


class ImageFolders:
    """Finds files and images by path. Folders that cannot be read count as empty."""

    def __init__(self) -> None:
        self._listings: dict[str, _Listing] = {}

    def find(self, path: str) -> list[str]:
        """The image at `path`, or else the images whose path without extension is `path`."""
        folder, name = os.path.split(path)
        listing = self._listing(folder)
        if name in listing.files and is_image_name(name):
            return [path]
        named = [os.path.join(folder, each) for each in listing.images.get(name, ())]
        return named or ([path] if name in listing.files else [])

    def has_file(self, path: str) -> bool:
        folder, name = os.path.split(path)
        return name in self._listing(folder).files

    def _listing(self, folder: str) -> _Listing:
        if folder not in self._listings:
            self._listings[folder] = _list_folder(folder)
        return self._listings[folder]


def _list_folder(folder: str) -> _Listing:
    try:
        with os.scandir(folder or ".") as entries:
            listing = _Listing(frozenset(entry.name for entry in entries if not is_folder(entry)))
    except (OSError, ValueError):  # ValueError: an invalid path
        return _Listing(frozenset())
    for name in sorted(filter(is_image_name, listing.files)):
        listing.images.setdefault(os.path.splitext(name)[0], []).append(name)
    return listing
