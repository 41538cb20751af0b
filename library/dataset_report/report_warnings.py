"""Warnings about a dataset: unreadable images, empty or truncated captions, duplicates, strong crops, small batches."""

from __future__ import annotations

import ntpath
import os
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from library.cli.errors import plural
from library.data.batches.plan import PlannedDataset, TrainingData
from library.data.records import ImageRecord, Placement, size_text
from library.dataset_report.sampled_items import ImageId

_STRONG_CROP = 0.2  # of the area
_UPSCALED = 1.05  # less is rounding


@dataclass(frozen=True)
class Kind:
    """A kind of warning: its title, the mark of an image without a note of its own, and advice."""

    title: str
    mark: str
    advice: str


KINDS = {
    "unreadable": Kind(
        "Unreadable images",
        "unreadable",
        "Training stops at the first of them. Repair or remove them, or train with --skip_bad_images.",
    ),
    "missing": Kind(
        "Images without a caption file",
        "no caption file",
        "Their caption is the class tokens. If they have caption files, check --caption_extension.",
    ),
    "empty": Kind("Empty captions", "empty caption", "They train the model's output for an empty prompt."),
    "long": Kind(
        "Captions over the token limit",
        "truncated caption",
        "The text struck through is truncated. Shorten them, put important tags first, or raise --max_token_length.",
    ),
    "duplicate": Kind(
        "Files with the same content",
        "duplicate",
        "They are trained twice as often. Remove one, or use num_repeats instead.",
    ),
    "similar": Kind(
        "Images that look nearly the same",
        "looks alike",
        "Perhaps the same image saved twice. Keep the better one.",
    ),
    "crop": Kind(
        f"Images that lose more than {_STRONG_CROP:.0%} of their area",
        "strong crop",
        "Check what is left of them. enable_bucket, or smaller bucket_reso_steps, crops less.",
    ),
    "tiny": Kind(
        "Images smaller than their bucket",
        "upscaled",
        "They are upscaled, which trains the model on blur. Use larger ones, a lower resolution, or bucket_no_upscale.",
    ),
    "batches": Kind(
        "Buckets with fewer items than a batch",
        "small batch",
        "Their batches are smaller than batch_size. Crop these images to a common shape, add more of the same shape, "
        "or use larger bucket_reso_steps.",
    ),
    "unused": Kind(
        "Unused regularisation images",
        "not used",
        "There are more of them than training images times repeats. Raise num_repeats of those, or remove some.",
    ),
}


@dataclass(frozen=True)
class DatasetWarnings:
    """The images of each kind of warning, in order, each with a note."""

    notes: Mapping[str, Mapping[ImageId, str]]

    def marks(self, image: ImageId) -> dict[str, str]:
        """The kinds of warnings of an image, each with its note."""
        return {kind: notes[image] for kind, notes in self.notes.items() if image in notes}


def collect_warnings(data: TrainingData, seen: Mapping[str, Mapping[ImageId, str]]) -> DatasetWarnings:
    """Warnings about sizes, captions and buckets, and `seen`: those from decoding images and tokenizing captions."""
    notes: dict[str, dict[ImageId, str]] = {kind: dict(seen.get(kind, {})) for kind in KINDS}
    for dataset_index, dataset in enumerate(data.datasets):
        for kind, index, note in _of_dataset(dataset):
            notes[kind].setdefault(ImageId(dataset_index, index), note)
    return DatasetWarnings({kind: dict(sorted(found.items())) for kind, found in notes.items() if found})


def _of_dataset(dataset: PlannedDataset) -> Iterator[tuple[str, int, str]]:
    used = set(dataset.used_record_indices)
    small = _small_buckets(dataset)
    for index, record in enumerate(dataset.records):
        placement = dataset.placements[index]
        for kind, note in _of_caption(dataset, record):
            yield kind, index, note
        if index not in used:
            yield "unused", index, ""
        if record.legacy_npz is not None:
            continue  # its latents were made elsewhere
        lost = cropped_fraction(placement)
        if lost > _STRONG_CROP and dataset.subset_of(record).face_crop_aug_range is None:
            yield "crop", index, f"{lost:.0%} cropped away"
        factor = upscale_factor(record, placement)
        if factor > _UPSCALED:
            yield "tiny", index, f"upscaled {factor:.1f} times"
        if index in used and placement.bucket in small:
            yield "batches", index, small[placement.bucket]


def _of_caption(dataset: PlannedDataset, record: ImageRecord) -> Iterator[tuple[str, str]]:
    subset = dataset.subset_of(record)
    if not record.caption.strip():
        yield "empty", ""
    elif subset.source == "folder" and record.caption == subset.class_tokens and not record.is_reg:
        # only images whose caption could be the class tokens need a look at the folder; regularisation images are
        # meant to have the class tokens alone
        file = os.path.splitext(record.path)[0] + subset.caption_extension
        if not os.path.exists(file):
            yield "missing", "no caption file"


def _small_buckets(dataset: PlannedDataset) -> dict[tuple[int, int], str]:
    batch_size = dataset.config.batch_size
    return {
        size: f"bucket {size_text(size)} has {plural(count, 'item')}, batch size {batch_size}"
        for size, count in dataset.bucket_counts.items()
        if count < batch_size
    }


def cropped_fraction(placement: Placement) -> float:
    """The fraction of the resized image's area outside the crop."""
    (width, height), (bucket_width, bucket_height) = placement.resized, placement.bucket
    return max(0.0, 1 - bucket_width * bucket_height / (width * height))


def short_name(record: ImageRecord) -> str:
    """The file's name without its folder."""
    return posixpath.basename(record.key) or ntpath.basename(record.path)


def upscale_factor(record: ImageRecord, placement: Placement) -> float:
    """The factor by which an image is upscaled; below 1, downscaled."""
    return max(placement.resized[0] / record.size[0], placement.resized[1] / record.size[1])
