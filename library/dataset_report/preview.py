"""What the page shows of the images: captions as drawn, thumbnails, warnings about pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from library.data.batches.plan import TrainingData
from library.data.records import ImageRecord, Item
from library.dataset_report.caption_length import CaptionLength, TokenLimit, measure_caption
from library.dataset_report.duplicates import near_duplicates, same_files
from library.dataset_report.rendering import Thumbnail, longest_side, render_all, thumbnail_line
from library.dataset_report.report_warnings import DatasetWarnings, collect_warnings, short_name
from library.dataset_report.sampled_items import DrawSettings, ImageId, draw_uses, unused_item


@dataclass(frozen=True)
class Preview:
    """The results of decoding the images and tokenizing the captions."""

    images: Sequence[ImageId]
    captions: Mapping[ImageId, Sequence[str]]  # distinct ones, as drawn
    items: Mapping[ImageId, Item]  # the use that is shown
    lengths: Mapping[str, CaptionLength]
    warnings: DatasetWarnings


def render_images(
    data: TrainingData,
    draw: DrawSettings,
    tokens: TokenLimit,
    images: Sequence[ImageId],
    spool: IO[bytes],
    advance: Callable[[int], object],
) -> Preview:
    """Decodes the images, whose thumbnails go to `spool`, and counts the tokens of their captions.

    `advance` is called after each image.
    """
    uses = draw_uses(data, images, draw)
    items = {image: uses[image][0] if uses.get(image) else _unused(data, image) for image in images}
    captions = {
        image: list(dict.fromkeys(item.caption for item in uses.get(image) or [items[image]])) for image in images
    }
    thumbnails = [Thumbnail(items[image], _flips(data, image), draw.masks) for image in images]
    rendered = render_all(
        thumbnails, longest_side(sum(1 + each.flips + (each.masks is not None) for each in thumbnails))
    )
    greys, unreadable = [], {}
    for image, seen in zip(images, rendered, strict=True):
        spool.write(thumbnail_line(seen))
        if seen.grey is not None:
            greys.append((image, seen.grey))
        elif items[image].latent_key.legacy_npz_path is None:
            unreadable[image] = ""
        advance(1)
    lengths = {text: measure_caption(text, tokens) for each in captions.values() for text in each}
    seen_notes = {
        "unreadable": unreadable,
        "long": _long_notes(captions, lengths, tokens.limit),
        **_duplicate_notes(data, greys),
    }
    return Preview(images, captions, items, lengths, collect_warnings(data, seen_notes))


def _unused(data: TrainingData, image: ImageId) -> Item:
    return unused_item(data.datasets[image.dataset], image.record)


def _record(data: TrainingData, image: ImageId) -> ImageRecord:
    return data.datasets[image.dataset].records[image.record]


def _flips(data: TrainingData, image: ImageId) -> bool:
    return data.datasets[image.dataset].subset_of(_record(data, image)).flip_aug


def _long_notes(
    captions: Mapping[ImageId, Sequence[str]], lengths: Mapping[str, CaptionLength], limit: int
) -> dict[ImageId, str]:
    longest = {image: max(lengths[text].num_tokens for text in each) for image, each in captions.items()}
    return {image: f"{count} tokens, truncated to {limit}" for image, count in longest.items() if count > limit}


def _duplicate_notes(data: TrainingData, greys: Sequence[tuple[ImageId, np.ndarray]]) -> dict[str, dict[ImageId, str]]:
    same = same_files(data)
    seen_paths: dict[str, ImageId] = {}
    different = []  # files, each once
    for image, grey in greys:
        path = _record(data, image).path
        is_copy = path in seen_paths or any(other in seen_paths for other in same.get(image, ()))
        seen_paths.setdefault(path, image)
        if not is_copy:
            different.append((image, grey))
    alike: dict[ImageId, str] = {}
    for image, twin in near_duplicates(different).items():
        alike[image] = f"looks like {short_name(_record(data, twin))}"
        alike.setdefault(twin, f"looks like {short_name(_record(data, image))}")
    return {"duplicate": {image: _same_as(others) for image, others in same.items()}, "similar": alike}


def _same_as(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"same content as {Path(paths[0]).name}{more}"
