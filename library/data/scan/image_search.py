"""Finds the images of a folder, and of the folders in it, for scripts that work on each of them."""

from __future__ import annotations

import os

from library.cli.errors import UserError
from library.data.images.image_files import IMAGE_ENDINGS, NoImages
from library.data.scan.listing import is_image_name
from library.data.scan.shard_paths import are_shards

_UNPACKED = "only training reads tar shards (--shards): give the folder of the images that were packed, or unpack them"


def find_images(folder: str, *, recursive: bool = False, flag: str = "TRAIN_DATA_DIR") -> list[str]:
    """The paths of the images in a folder, with `recursive` in its subfolders too, sorted; hidden ones are left out.

    Each begins with `folder` as it is given. Links to folders are followed. Raises `UserError` where there is no
    such folder, `NoImages` where it has no images.
    """
    if not os.path.isdir(folder):
        kind = "is a file" if os.path.exists(folder) else "does not exist"
        raise UserError(
            f"{flag} {folder} {kind}", hint=_UNPACKED if are_shards(folder) else "give the folder of images"
        )
    try:
        found = sorted(_images_below(folder) if recursive else _images_in(folder, os.listdir(folder)))
    except OSError as error:
        raise UserError(
            f"{flag} {error.filename} cannot be read: {error.strerror}", hint="allow this user to read it"
        ) from None
    if not found:
        hint = f"put images ({' '.join(IMAGE_ENDINGS)}) in it"
        if not recursive and any(_images_below(folder)):
            hint = "its subfolders do: add --recursive"
        elif are_shards(folder):
            hint = _UNPACKED
        raise NoImages(f"{flag} {folder} contains no images", hint=hint)
    return found


def _images_in(folder: str, names: list[str]) -> list[str]:
    return [os.path.join(folder, name) for name in names if is_image_name(name)]


def _images_below(folder: str) -> list[str]:
    images: list[str] = []
    seen: set[str] = set()
    for parent, children, names in os.walk(folder, followlinks=True, onerror=_raise):
        real = os.path.realpath(parent)
        if real in seen:  # links in a circle, or a second way to the same folder
            children.clear()
            continue
        seen.add(real)
        children[:] = sorted(name for name in children if not name.startswith("."))
        images += _images_in(parent, names)
    return images


def _raise(error: OSError) -> None:
    raise error
