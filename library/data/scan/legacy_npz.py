"""Which images have latents that `prepare_buckets_latents.py` made before, and whether they can be used.

They lie beside the image as `<stem>.npz`, those of the mirrored image as `<stem>_flip.npz`. Arrays are not read
here, nor is NumPy imported.
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
from library.data.records import ImageRecord, Size
from library.data.scan.listing import ImageFolders, is_image_name

logger = logging.getLogger(__name__)

_MAX_NAMES_IN_ERROR = 200
_MAX_NAMES_IN_WARNING = 5
_PREPARE = "finetune/prepare_buckets_latents.py"
# NumPy's names of numbers to those of `struct`
_NUMBERS = {"<i2": "<h", "<i4": "<i", "<i8": "<q", "<u2": "<H", "<u4": "<I", "<u8": "<Q", "<f4": "<f", "<f8": "<d"}
_DAMAGE_ERRORS = (OSError, ValueError, SyntaxError, LookupError, TypeError, EOFError, ArithmeticError, MemoryError)
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, RuntimeError)


def prepared_path(image: str) -> str:
    """The file of prepared latents of an image, or of an image's path without its ending."""
    stem = os.path.splitext(image)[0] if is_image_name(os.path.basename(image)) else image
    return f"{stem}.npz"


def flipped_path(prepared: str) -> str:
    """The file of prepared latents of the mirrored image."""
    return f"{prepared.removesuffix('.npz')}_flip.npz"


def original_size(path: str) -> Size | None:
    """(width, height) of the image that prepared latents were made from; None if the file does not say.

    Raises `UserError` naming the file if it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as file:
            if "original_size.npy" not in file.namelist():
                return None
            width, height = map(int, _numbers(file.read("original_size.npy")))
    except (*_DAMAGE_ERRORS, *_ZIP_ERRORS) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise _damaged(path, reason) from None
    if width < 1 or height < 1:
        raise _damaged(path, f"original_size {width}x{height}")
    return width, height


def _damaged(path: str, reason: str) -> UserError:
    return UserError(f"prepared latents {path} are damaged ({reason})", f"prepare them anew with {_PREPARE}")


def _numbers(content: bytes) -> Sequence[float]:
    """The numbers of an array in NumPy's .npy format, versions 1 to 3."""
    if content[:6] != b"\x93NUMPY":
        raise ValueError("original_size is no array")
    length_format = "<H" if content[6] == 1 else "<I"
    start = 8 + struct.calcsize(length_format)
    (length,) = struct.unpack_from(length_format, content, 8)
    header = ast.literal_eval(content[start : start + length].decode("latin-1"))
    return [number for (number,) in struct.iter_unpack(_NUMBERS[header["descr"]], content[start + length :])]


def settle_prepared(config: DatasetConfig, records: list[ImageRecord], problems: list[UserError]) -> list[ImageRecord]:
    """The records of a dataset with prepared latents for all of them, or, with a warning that says why, for none.

    Without them, an image that is gone is a problem; its record is left out.
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
        and not folders.has_file(flipped_path(record.prepared.path))
    ]
    if not lacking and not unflipped:
        problems += _bucket_problems(config, records)
        _warn_of_newer_images(config, records)
        return records
    reasons = []
    if lacking:
        reasons.append(f"{_count(lacking, records)} have none ({listed(lacking, _MAX_NAMES_IN_WARNING)})")
    if unflipped:
        reasons.append(
            f"{_count(unflipped, records)} lack those of the mirrored image, which flip_aug needs "
            f"({listed(unflipped, _MAX_NAMES_IN_WARNING)})"
        )
    logger.warning("%s: no prepared latents are used: %s", config.key_path, "; ".join(reasons))
    there = [record for record in records if folders.has_file(record.path)]
    if len(there) < len(records):
        problems.append(_gone(config, records, there))
    return [dataclasses.replace(record, prepared=None) for record in there]


def _gone(config: DatasetConfig, records: list[ImageRecord], there: list[ImageRecord]) -> UserError:
    kept = {id(record) for record in there}
    names = [record.key for record in records if id(record) not in kept]
    return UserError(
        f"{config.key_path}: {len(names)} images are gone, and their prepared latents cannot be used alone: "
        f"{listed(names, _MAX_NAMES_IN_ERROR)}",
        hint=f"prepare the latents of all images of the dataset with {_PREPARE}, or put the images back",
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
            f"{config.key_path}: train_resolution of {len(wrong)} images with prepared latents is not a multiple of "
            f"{PIXELS_PER_LATENT}: {listed(wrong, _MAX_NAMES_IN_ERROR)}",
            hint=f"prepare the latents anew with {_PREPARE}",
        )
    ]


def _warn_of_newer_images(config: DatasetConfig, records: list[ImageRecord]) -> None:
    newer = [record.key for record in records if record.prepared and record.mtime_ns > _mtime_ns(record.prepared.path)]
    if newer:
        logger.warning(
            "%s: %s are newer than their prepared latents, which are used as they are (%s)",
            config.key_path, _count(newer, records), listed(newer, _MAX_NAMES_IN_WARNING),
        )  # fmt: skip


def _mtime_ns(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0  # it was removed just now: reading it says so


def _count(names: list[str], records: list[ImageRecord]) -> str:
    return f"{len(names)} of {len(records)} images"
