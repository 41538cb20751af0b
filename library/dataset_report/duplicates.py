"""Duplicate images: the same bytes, or nearly the same pixels."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping

import numpy as np
from PIL import Image

from library.cli.errors import UserError
from library.cli.file_hashes import file_sha256
from library.data.batches.plan import TrainingData
from library.data.records import ShardMember
from library.data.storage import read_member
from library.dataset_report.sampled_items import ImageId

_THUMBNAIL_SIZE = (17, 16)
_NUM_BANDS = 8
_CLEAR_STEP = 4  # of 255: smaller steps between neighbours are noise
_MOST_CANDIDATES = 50  # images that share one band, such as those with the same empty background
_NEAR_DUPLICATE = 3.0  # of 255: mean difference up to which two images count as the same


def same_files(data: TrainingData) -> dict[ImageId, list[str]]:
    """Images whose file has the same content as others, with the paths of those.

    Only files of equal size are read. A file that several datasets use is not a duplicate of itself.
    """
    by_size: dict[int, dict[str, list[ImageId]]] = {}
    members: dict[str, ShardMember | None] = {}
    for dataset_index, dataset in enumerate(data.datasets):
        for index, record in enumerate(dataset.records):
            try:
                size = record.member.num_bytes if record.member else os.stat(record.path).st_size
            except OSError:
                continue  # not found: the page shows the error with the image
            members[record.path] = record.member
            paths = by_size.setdefault(size, {})
            paths.setdefault(record.path, []).append(ImageId(dataset_index, index))
    found: dict[ImageId, list[str]] = {}
    for paths in by_size.values():
        if len(paths) > 1:
            found.update(_same_content(paths, members))
    return found


def _same_content(
    paths: Mapping[str, list[ImageId]], members: Mapping[str, ShardMember | None]
) -> dict[ImageId, list[str]]:
    by_content: dict[str, list[str]] = {}
    for path in paths:
        member = members[path]
        try:
            digest = file_sha256(path) if member is None else hashlib.sha256(read_member(member)).hexdigest()
        except (OSError, UserError):
            continue
        by_content.setdefault(digest, []).append(path)
    return {
        image: [other for other in same if other != path]
        for same in by_content.values()
        if len(same) > 1
        for path in same
        for image in paths[path]
    }


def grey_thumbnail(image: Image.Image) -> np.ndarray:
    """A tiny grey version of an image, uint8 (16, 17)."""
    return np.asarray(image.convert("L").resize(_THUMBNAIL_SIZE, Image.Resampling.BOX))


def near_duplicates(thumbnails: Iterable[tuple[ImageId, np.ndarray]]) -> dict[ImageId, ImageId]:
    """Images that look nearly the same as an earlier one, with that one.

    A difference hash (whether each pixel is clearly brighter than its right neighbour) in bands of 32 bits finds
    candidates; the difference of the thumbnails decides. Images without any steps have no hash.
    """
    by_band: dict[tuple[int, bytes], list[tuple[ImageId, np.ndarray]]] = {}
    found: dict[ImageId, ImageId] = {}
    for image, thumbnail in thumbnails:
        grey = thumbnail.astype(np.int16)
        bits = grey[:, :-1] > grey[:, 1:] + _CLEAR_STEP
        for band, part in enumerate(np.packbits(bits).reshape(_NUM_BANDS, -1)):
            if not part.any():
                continue
            others = by_band.setdefault((band, part.tobytes()), [])
            twin = next((other for other, seen in others if _differ_by(grey, seen) <= _NEAR_DUPLICATE), None)
            if twin is not None:
                found.setdefault(image, twin)
            elif len(others) < _MOST_CANDIDATES:
                others.append((image, grey))
    return found


def _differ_by(left: np.ndarray, right: np.ndarray) -> float:
    return float(np.abs(left - right).mean())
