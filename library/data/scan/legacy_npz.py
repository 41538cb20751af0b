"""Legacy .npz latents: which images have latents made by `prepare_buckets_latents.py`, and whether they are usable.

They are files beside the image, `<stem>.npz`, those of the flipped image `<stem>_flip.npz`. Latents are not read here,
and NumPy is not imported.
"""

from __future__ import annotations

import ast
import dataclasses
import logging
import os
import struct
import zipfile
import zlib
from collections.abc import Sequence

from library.cli.errors import UserError, listed
from library.data.buckets import PIXELS_PER_LATENT
from library.data.config.config import DatasetConfig
from library.data.records import ImageRecord, Size, flipped_npz_path
from library.data.scan.listing import ImageFolders, is_image_name

logger = logging.getLogger(__name__)

_MAX_NAMES_IN_ERROR = 200
_MAX_NAMES_IN_WARNING = 5
_PREPARE = "finetune/prepare_buckets_latents.py"
# NumPy dtypes to formats of `struct`
_NUMBERS = {"<i2": "<h", "<i4": "<i", "<i8": "<q", "<u2": "<H", "<u4": "<I", "<u8": "<Q", "<f4": "<f", "<f8": "<d"}
_DAMAGE_ERRORS = (OSError, ValueError, SyntaxError, LookupError, TypeError, EOFError, ArithmeticError, MemoryError)
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, RuntimeError)


def prepared_path(image: str) -> str:
    """The legacy .npz file of an image, given with or without its extension."""
    stem = os.path.splitext(image)[0] if is_image_name(os.path.basename(image)) else image
    return f"{stem}.npz"


def original_size(path: str) -> Size | None:
    """(width, height) of the image that legacy .npz latents were made from; None if the file does not have it.

    Raises `UserError` naming the file if it is corrupt.
    """
    try:
        with zipfile.ZipFile(path) as file:
            if "original_size.npy" not in file.namelist():
                return None
            width, height = map(int, _numbers(file.read("original_size.npy")))
    except (*_DAMAGE_ERRORS, *_ZIP_ERRORS) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise _corrupt(path, reason) from None
    if width < 1 or height < 1:
        raise _corrupt(path, f"original_size {width}x{height}")
    return width, height


def _corrupt(path: str, reason: str) -> UserError:
    return UserError(f"legacy .npz latents {path} are corrupt ({reason})", f"make them again with {_PREPARE}")


def _numbers(content: bytes) -> Sequence[float]:
    """The numbers of an array in NumPy's .npy format, versions 1 to 3."""
    if content[:6] != b"\x93NUMPY":
        raise ValueError("original_size is no array")
    length_format = "<H" if content[6] == 1 else "<I"
    start = 8 + struct.calcsize(length_format)
    (length,) = struct.unpack_from(length_format, content, 8)
    header = ast.literal_eval(content[start : start + length].decode("latin-1"))
    return [number for (number,) in struct.iter_unpack(_NUMBERS[header["descr"]], content[start + length :])]


def settle_legacy_latents(
    config: DatasetConfig, records: list[ImageRecord], problems: list[UserError]
) -> list[ImageRecord]:
    """The records of a dataset, with legacy .npz latents for all images, or, with a warning of the reason, for none.

    Without them, an image that is not found is an error; its record is dropped.
    """
    if not any(record.prepared for record in records):
        return records
    folders = ImageFolders()
    lacking = [record.key for record in records if record.prepared is None]
    unflipped = [
        record.key
        for record in records
        if record.prepared
        and config.subsets[record.subset_index].flip_aug
        and not folders.has_file(flipped_npz_path(record.prepared.path))
    ]
    if not lacking and not unflipped:
        problems += _bucket_problems(config, records)
        _warn_newer_images(config, records)
        return records
    reasons = []
    if lacking:
        reasons.append(f"{_count(lacking, records)} have none ({listed(lacking, _MAX_NAMES_IN_WARNING)})")
    if unflipped:
        reasons.append(
            f"{_count(unflipped, records)} lack those of the flipped image, which flip_aug needs "
            f"({listed(unflipped, _MAX_NAMES_IN_WARNING)})"
        )
    logger.warning("%s: legacy .npz latents are not used: %s", config.key_path, "; ".join(reasons))
    existing = [record for record in records if folders.has_file(record.path)]
    if len(existing) < len(records):
        problems.append(_images_not_found(config, records, existing))
    return [dataclasses.replace(record, prepared=None) for record in existing]


def _images_not_found(config: DatasetConfig, records: list[ImageRecord], existing: list[ImageRecord]) -> UserError:
    kept = {id(record) for record in existing}
    names = [record.key for record in records if id(record) not in kept]
    return UserError(
        f"{config.key_path}: {len(names)} images not found, and their legacy .npz latents cannot be used alone: "
        f"{listed(names, _MAX_NAMES_IN_ERROR)}",
        hint=f"make the latents of all images of the dataset with {_PREPARE}, or restore the images",
    )


def _bucket_problems(config: DatasetConfig, records: list[ImageRecord]) -> list[UserError]:
    wrong = [
        record.key
        for record in records
        if record.prepared and any(side % PIXELS_PER_LATENT for side in record.prepared.bucket)
    ]
    if not wrong:
        return []
    return [
        UserError(
            f"{config.key_path}: train_resolution of {len(wrong)} images with legacy .npz latents is not a multiple of "
            f"{PIXELS_PER_LATENT}: {listed(wrong, _MAX_NAMES_IN_ERROR)}",
            hint=f"make the latents again with {_PREPARE}",
        )
    ]


def _warn_newer_images(config: DatasetConfig, records: list[ImageRecord]) -> None:
    newer = [record.key for record in records if record.prepared and record.mtime_ns > _mtime_ns(record.prepared.path)]
    if newer:
        logger.warning(
            "%s: %s are newer than their legacy .npz latents, which are used as they are (%s)",
            config.key_path, _count(newer, records), listed(newer, _MAX_NAMES_IN_WARNING),
        )  # fmt: skip


def _mtime_ns(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0  # removed just now: reading it will report that


def _count(names: list[str], records: list[ImageRecord]) -> str:
    return f"{len(names)} of {len(records)} images"
