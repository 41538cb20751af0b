"""What about a dataset its user may want to change."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from library.data.batches.plan import PlannedDataset, TrainingData
from library.data.records import ImageRecord, Placement
from library.dataset_report.sampled_items import ImageId

_STRONG_CROP = 0.2  # of the area
_ENLARGED = 1.05  # less is rounding


@dataclass(frozen=True)
class Kind:
    """A kind of finding: its title, what marks an image about which there is no more to say, and what can be done."""

    title: str
    mark: str
    advice: str


KINDS = {
    "unreadable": Kind(
        "Images that cannot be read",
        "unreadable",
        "Training stops at the first of them. Repair or remove them, or train with --skip_bad_images.",
    ),
    "missing": Kind(
        "Images without a caption file",
        "no caption file",
        "The class tokens are their caption. Check the ending in --caption_extension if the files are there.",
    ),
    "empty": Kind("Empty captions", "empty caption", "They teach the model what it paints without a prompt."),
    "long": Kind(
        "Captions over the token limit",
        "caption cut off",
        "What is struck through is not read. Shorten them, put what matters first, or raise --max_token_length.",
    ),
    "duplicate": Kind(
        "Files with the same content", "duplicate", "They count twice. Remove one, or use num_repeats on purpose."
    ),
    "similar": Kind(
        "Images that look nearly the same",
        "looks alike",
        "Perhaps the same image saved twice. Keep the better one.",
    ),
    "crop": Kind(
        f"Images that lose more than {_STRONG_CROP:.0%} of their area",
        "strong crop",
        "Look at what is left of them. enable_bucket, or smaller bucket_reso_steps, cuts less away.",
    ),
    "tiny": Kind(
        "Images smaller than their bucket",
        "enlarged",
        "They are enlarged, and what is learned is blurred. Use larger ones, a lower resolution, or bucket_no_upscale.",
    ),
    "batches": Kind(
        "Buckets with fewer items than a batch",
        "small batch",
        "Their batches are smaller than batch_size. Crop these images to a common shape, add more of the same shape, "
        "or use larger bucket_reso_steps.",
    ),
    "unused": Kind(
        "Regularisation images that are not used",
        "not used",
        "There are more of them than training images with repeats. Raise num_repeats of those, or remove these.",
    ),
}


@dataclass(frozen=True)
class ReportWarnings:
    """For each kind found, the images with a note on each, in order."""

    notes: Mapping[str, Mapping[ImageId, str]]

    def marks(self, image: ImageId) -> dict[str, str]:
        """The kinds that an image has, each with its note."""
        return {kind: notes[image] for kind, notes in self.notes.items() if image in notes}


def collect_findings(data: TrainingData, seen: Mapping[str, Mapping[ImageId, str]]) -> ReportWarnings:
    """What sizes, captions and buckets show, and `seen`: what was found when images and captions were looked at."""
    notes: dict[str, dict[ImageId, str]] = {kind: dict(seen.get(kind, {})) for kind in KINDS}
    for place, dataset in enumerate(data.datasets):
        for kind, index, note in _of_dataset(dataset):
            notes[kind].setdefault(ImageId(place, index), note)
    return ReportWarnings({kind: dict(sorted(found.items())) for kind, found in notes.items() if found})


def _of_dataset(dataset: PlannedDataset) -> Iterator[tuple[str, int, str]]:
    used = set(dataset.used_record_indices)
    small = _small_buckets(dataset)
    for index, record in enumerate(dataset.records):
        placement = dataset.placements[index]
        for kind, note in _of_caption(dataset, record):
            yield kind, index, note
        if index not in used:
            yield "unused", index, ""
        if record.prepared is not None:
            continue  # its latents were made elsewhere
        lost = share_cut_away(placement)
        if lost > _STRONG_CROP and dataset.subset_of(record).face_crop_aug_range is None:
            yield "crop", index, f"{lost:.0%} cut away"
        factor = enlarged_by(record, placement)
        if factor > _ENLARGED:
            yield "tiny", index, f"enlarged {factor:.1f} times"
        if index in used and placement.bucket in small:
            yield "batches", index, small[placement.bucket]


def _of_caption(dataset: PlannedDataset, record: ImageRecord) -> Iterator[tuple[str, str]]:
    subset = dataset.subset_of(record)
    if not record.caption.strip():
        yield "empty", ""
    elif subset.metadata_file is None and record.caption == subset.class_tokens and not record.is_reg:
        # only for those whose caption could be the class tokens, the folder is asked again; regularisation images
        # are meant to have the class tokens alone
        file = os.path.splitext(record.path)[0] + subset.caption_extension
        if not os.path.exists(file):
            yield "missing", "no caption file"


def _small_buckets(dataset: PlannedDataset) -> dict[tuple[int, int], str]:
    batch_size = dataset.config.batch_size
    return {
        size: f"bucket {size[0]} × {size[1]} has {count} for batches of {batch_size}"
        for size, count in dataset.bucket_counts.items()
        if count < batch_size
    }


def share_cut_away(placement: Placement) -> float:
    """The share of the resized image's area outside the crop."""
    (width, height), (bucket_width, bucket_height) = placement.resized, placement.bucket
    return max(0.0, 1 - bucket_width * bucket_height / (width * height))


def enlarged_by(record: ImageRecord, placement: Placement) -> float:
    """By which factor an image is enlarged; below 1, made smaller."""
    return max(placement.resized[0] / record.size[0], placement.resized[1] / record.size[1])
