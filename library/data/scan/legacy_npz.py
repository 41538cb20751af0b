"""Legacy .npz latents: which images have latents made by `prepare_buckets_latents.py`, and whether they are usable.

They are files beside the image, `<stem>.npz`, those of the flipped image `<stem>_flip.npz`. Latents are not read here,
and NumPy is not imported.
"""

from __future__ import annotations

import dataclasses
import logging
import os

from library.cli.damaged_files import DAMAGED_FILE_ERRORS, file_error_reason
from library.cli.errors import UserError, listed, plural
from library.data.buckets import PIXELS_PER_LATENT
from library.data.config.config import DatasetConfig
from library.data.records import ImageRecord, Size, flipped_npz_path
from library.data.scan.listing import ImageFolders, is_image_name

logger = logging.getLogger(__name__)

_MAX_NAMES_IN_ERROR = 200
_MAX_NAMES_IN_WARNING = 5
_PREPARE = "finetune/prepare_buckets_latents.py"


def legacy_npz_path(image: str) -> str:
    """The legacy .npz file of an image, given with or without its extension."""
    stem = os.path.splitext(image)[0] if is_image_name(os.path.basename(image)) else image
    return f"{stem}.npz"


def original_size(path: str) -> Size | None:
    """(width, height) of the image that legacy .npz latents were made from; None if the file does not have it.

    Raises `UserError` naming the file if it is corrupt.
    """
    from library.data.caches.npz_files import opened_arrays  # imports NumPy, which other images do not need

    try:
        with opened_arrays(path) as file:
            if "original_size" not in file:
                return None
            width, height = map(int, file["original_size"])
    except DAMAGED_FILE_ERRORS as error:
        raise _corrupt(path, file_error_reason(error)) from None
    if width < 1 or height < 1:
        raise _corrupt(path, f"original_size {width}x{height}")
    return width, height


def _corrupt(path: str, reason: str) -> UserError:
    return UserError(f"legacy .npz latents {path} are corrupt ({reason})", f"make them again with {_PREPARE}")


def settle_legacy_latents(
    config: DatasetConfig, records: list[ImageRecord], problems: list[UserError]
) -> list[ImageRecord]:
    """The records of a dataset, with legacy .npz latents for all images, or, with a warning of the reason, for none.

    Without them, an image that is not found is an error; its record is dropped.
    """
    if not any(record.legacy_npz for record in records):
        return records
    folders = ImageFolders()
    lacking = [record.key for record in records if record.legacy_npz is None]
    unflipped = [
        record.key
        for record in records
        if record.legacy_npz
        and config.subsets[record.subset_index].flip_aug
        and not folders.has_file(flipped_npz_path(record.legacy_npz.path))
    ]
    if not lacking and not unflipped:
        problems += _bucket_problems(config, records)
        _warn_newer_images(config, records)
        _warn_shared_files(config, records)
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
    return [dataclasses.replace(record, legacy_npz=None) for record in existing]


def _images_not_found(config: DatasetConfig, records: list[ImageRecord], existing: list[ImageRecord]) -> UserError:
    kept = {id(record) for record in existing}
    names = [record.key for record in records if id(record) not in kept]
    return UserError(
        f"{config.key_path}: {plural(len(names), 'image')} not found, and their legacy .npz latents cannot be used"
        f" alone: {listed(names, _MAX_NAMES_IN_ERROR)}",
        hint=f"make the latents of all images of the dataset with {_PREPARE}, or restore the images",
    )


def _bucket_problems(config: DatasetConfig, records: list[ImageRecord]) -> list[UserError]:
    wrong = [
        record.key
        for record in records
        if record.legacy_npz and any(side % PIXELS_PER_LATENT for side in record.legacy_npz.bucket)
    ]
    if not wrong:
        return []
    return [
        UserError(
            f"{config.key_path}: train_resolution of {plural(len(wrong), 'image')} with legacy .npz latents is not a "
            f"multiple of {PIXELS_PER_LATENT}: {listed(wrong, _MAX_NAMES_IN_ERROR)}",
            hint=f"make the latents again with {_PREPARE}",
        )
    ]


def _warn_newer_images(config: DatasetConfig, records: list[ImageRecord]) -> None:
    newer = [
        record.key for record in records if record.legacy_npz and record.mtime_ns > _mtime_ns(record.legacy_npz.path)
    ]
    if newer:
        logger.warning(
            "%s: %s are newer than their legacy .npz latents, which are used as they are (%s)",
            config.key_path, _count(newer, records), listed(newer, _MAX_NAMES_IN_WARNING),
        )  # fmt: skip


def _warn_shared_files(config: DatasetConfig, records: list[ImageRecord]) -> None:
    """Images that differ by their extension only: the latents are those of one of them."""
    first: dict[str, str] = {}
    shared = [
        f"{first[record.legacy_npz.path]} and {record.path}"
        for record in records
        if record.legacy_npz and first.setdefault(record.legacy_npz.path, record.path) != record.path
    ]
    if shared:
        logger.warning(
            "%s: images with the same name have the same legacy .npz latents, of which it is unknown whose they are:"
            " %s; rename them, and make the latents again", config.key_path, listed(shared, _MAX_NAMES_IN_WARNING),
        )  # fmt: skip


def _mtime_ns(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0  # removed just now: reading it will report that


def _count(names: list[str], records: list[ImageRecord]) -> str:
    return f"{len(names)} of {plural(len(records), 'image')}"
