"""Statistics of a dataset: numbers of images, batches, buckets, tags; the settings that were changed."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from library.data.batches.plan import PlannedDataset, TrainingData
from library.data.config.config import DatasetConfig, SubsetConfig
from library.data.records import Size

_SHOWN_ELSEWHERE = ("key_path", "resolution", "batch_size", "subsets", "image_dir", "metadata_file", "shards")


@dataclass(frozen=True)
class BucketRow:
    """One row of the table of buckets."""

    size: Size
    num_images: int
    num_items: int
    num_batches: int
    fill: float  # mean batch size / batch_size


def bucket_rows(dataset: PlannedDataset) -> list[BucketRow]:
    """The buckets of a dataset, sorted by size."""
    rows = []
    for bucket in dataset.buckets:
        num_items, num_batches = len(bucket.item_indices), bucket.num_batches(dataset.config.batch_size)
        rows.append(
            BucketRow(
                size=bucket.resolution,
                num_images=len(np.unique(dataset.items[bucket.item_indices])),
                num_items=num_items,
                num_batches=num_batches,
                fill=num_items / (num_batches * dataset.config.batch_size),
            )
        )
    return rows


def images_per_subset(dataset: PlannedDataset) -> list[int]:
    """How many images each subset of a dataset has."""
    indices = [record.subset_index for record in dataset.records]
    return np.bincount(indices, minlength=len(dataset.config.subsets)).tolist()


def totals(data: TrainingData) -> dict[str, int]:
    """The totals at the top of the page, by title."""
    records = [record for dataset in data.datasets for record in dataset.records]
    num_reg = sum(record.is_reg for record in records)
    return {
        "training images": len(records) - num_reg,
        "regularisation images": num_reg,
        "held out for validation, not shown": 0 if data.validation is None else data.validation.num_items,
        "items per epoch, with repeats": data.num_items,
        "batches per epoch": data.num_micro_batches,
        "datasets": len(data.datasets),
        "subsets": sum(len(dataset.config.subsets) for dataset in data.datasets),
        "distinct captions": len({record.caption for record in records}),
    }


def tag_counts(data: TrainingData) -> list[tuple[str, int]]:
    """How many images have each tag, the most frequent first, then by name.

    Tags are split at the separators of the subset, in all lines of a caption.
    """
    counter: Counter[str] = Counter()
    for dataset in data.datasets:
        splitters = [_splitter(subset) for subset in dataset.config.subsets]
        for record in dataset.records:
            tags = map(str.strip, splitters[record.subset_index].split(record.caption))
            counter.update({tag for tag in tags if tag})
    return sorted(counter.items(), key=lambda entry: (-entry[1], entry[0]))


def _splitter(subset: SubsetConfig) -> re.Pattern[str]:
    separators = [subset.caption_separator, subset.secondary_separator, subset.keep_tokens_separator, "\n", "\r"]
    return re.compile("|".join(re.escape(each) for each in separators if each))


def changed_settings(config: DatasetConfig | SubsetConfig) -> list[str]:
    """The settings that differ from their defaults, by their keys in the dataset file."""
    changed = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in _SHOWN_ELSEWHERE and value != field.default:
            changed.append(field.name if value is True else f"{field.name} = {value}")
    return changed
