"""What an epoch consists of: items, buckets, and the order of micro-batches as a function of (seed, epoch)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from library.data.buckets import BucketChooser, aspect_error
from library.data.captions import tag_frequency
from library.data.config import DatasetConfig, SubsetConfig
from library.data.randomness import derive_seed
from library.data.records import ImageRecord, LatentKey, MicroBatch, Size


@dataclass(frozen=True)
class Bucket:
    """The items of a dataset that are trained at one size."""

    resolution: Size
    item_indices: np.ndarray  # (items,) int64

    def num_batches(self, batch_size: int) -> int:
        return math.ceil(len(self.item_indices) / batch_size)


@dataclass(frozen=True)
class SubsetSummary:
    """What metadata says of a subset."""

    config: SubsetConfig
    img_count: int
    tag_frequency: dict[str, int]

    @property
    def num_items(self) -> int:
        """Pictures times repeats, before regularisation pictures are matched to the others."""
        return self.img_count * self.config.num_repeats


class PlannedDataset:
    """One dataset with its pictures found and placed.

    An item is one use of a picture in an epoch. `items[i]` is the index of its record.
    """

    def __init__(self, config: DatasetConfig, records: Sequence[ImageRecord]):
        self.config = config
        self.records = tuple(records)
        self.items = _make_items(self.records)
        chooser = BucketChooser(config.bucket_settings)
        by_size = {size: chooser.place(size) for size in {record.size for record in self.records}}
        self.placements = tuple(by_size[record.size] for record in self.records)
        self.buckets = self._make_buckets()

    def _make_buckets(self) -> tuple[Bucket, ...]:
        indices: dict[Size, list[int]] = {}
        for item, record_index in enumerate(self.items.tolist()):
            indices.setdefault(self.placements[record_index].bucket, []).append(item)
        return tuple(Bucket(size, np.array(indices[size], dtype=np.int64)) for size in sorted(indices))

    def record_of(self, item: int) -> ImageRecord:
        return self.records[self.items[item]]

    def subset_of(self, record: ImageRecord) -> SubsetConfig:
        return self.config.subsets[record.subset_index]

    def latent_key(self, record_index: int, flipped: bool) -> LatentKey:
        record = self.records[record_index]
        subset = self.subset_of(record)
        return LatentKey(
            path=record.path,
            image_key=record.key,
            image_size=record.size,
            mtime_ns=record.mtime_ns,
            placement=self.placements[record_index],
            flipped=flipped,
            interpolation=subset.resize_interpolation,
            alpha_is_mask=subset.alpha_mask,
            prepared_path=record.prepared.path if record.prepared else None,
        )

    @property
    def used_record_indices(self) -> list[int]:
        """The records that have items; regularisation pictures can be too many."""
        return np.unique(self.items).tolist()

    @property
    def num_micro_batches(self) -> int:
        return sum(bucket.num_batches(self.config.batch_size) for bucket in self.buckets)

    @property
    def num_train_images(self) -> int:
        """Training pictures, repeats counted."""
        return sum(record.num_repeats for record in self.records if not record.is_reg)

    @property
    def num_reg_images(self) -> int:
        """Regularisation pictures, repeats counted, before they are matched to the training pictures."""
        return sum(record.num_repeats for record in self.records if record.is_reg)

    @property
    def mean_aspect_error(self) -> float:
        """Mean over the pictures used of |aspect ratio of bucket - aspect ratio of picture|."""
        errors = [
            abs(aspect_error(self.records[index].size, self.placements[index].bucket))
            for index in self.used_record_indices
        ]
        return sum(errors) / len(errors) if errors else 0.0

    @property
    def bucket_counts(self) -> dict[Size, int]:
        """Items in each bucket, sorted by size."""
        return {bucket.resolution: len(bucket.item_indices) for bucket in self.buckets}

    @property
    def subset_summaries(self) -> list[SubsetSummary]:
        captions: list[list[str]] = [[] for _ in self.config.subsets]
        for record in self.records:
            captions[record.subset_index].append(record.caption)
        return [
            SubsetSummary(config, len(each), tag_frequency(each))
            for config, each in zip(self.config.subsets, captions, strict=True)
        ]


def _make_items(records: Sequence[ImageRecord]) -> np.ndarray:
    """Record indices, once for each use in an epoch: training pictures by their repeats, then regularisation ones."""
    train = [index for index, record in enumerate(records) if not record.is_reg]
    reg = [index for index, record in enumerate(records) if record.is_reg]
    items = [index for index in train for _ in range(records[index].num_repeats)]
    uses = match_regularisation([records[index].num_repeats for index in reg], len(items))
    items += [index for index, count in zip(reg, uses, strict=True) for _ in range(count)]
    return np.array(items, dtype=np.int64)


def match_regularisation(repeats: Sequence[int], num_items: int) -> list[int]:
    """How often each regularisation picture is used so that they are used `num_items` times together.

    Each gets its repeats in turn while there is room; if room is left, one more use each, round after round.
    """
    uses, room = [], num_items
    for count in repeats:
        uses.append(min(count, room))
        room -= uses[-1]
    if uses and room:
        rounds, rest = divmod(room, len(uses))
        uses = [count + rounds + (index < rest) for index, count in enumerate(uses)]
    return uses


@dataclass(frozen=True)
class TrainingData:
    """All datasets of a run."""

    datasets: tuple[PlannedDataset, ...]

    @property
    def num_items(self) -> int:
        """Items of an epoch."""
        return sum(len(dataset.items) for dataset in self.datasets)

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches of an epoch, the same in every epoch."""
        return sum(dataset.num_micro_batches for dataset in self.datasets)

    @property
    def num_train_images(self) -> int:
        return sum(dataset.num_train_images for dataset in self.datasets)

    @property
    def num_reg_images(self) -> int:
        return sum(dataset.num_reg_images for dataset in self.datasets)

    def plan(self, seed: int, epoch: int) -> list[MicroBatch]:
        """The micro-batches of an epoch in order: a function of the data, the seed and the epoch alone.

        Items are shuffled within their bucket and cut into batches; the batches of all buckets are then shuffled.
        """
        # the legacy generator: its streams stay the same in all versions of NumPy
        rng = np.random.RandomState(np.random.MT19937(derive_seed("plan", seed, epoch)))
        batches: list[tuple[int, tuple[int, ...]]] = []
        for dataset_index, dataset in enumerate(self.datasets):
            size = dataset.config.batch_size
            for bucket in dataset.buckets:
                shuffled = rng.permutation(bucket.item_indices).tolist()
                cuts = range(0, len(shuffled), size)
                batches += [(dataset_index, tuple(shuffled[start : start + size])) for start in cuts]
        plan, position = [], 0
        for index, source in enumerate(rng.permutation(len(batches)).tolist()):
            dataset_index, items = batches[source]
            plan.append(MicroBatch(epoch, index, dataset_index, items, position))
            position += len(items)
        return plan

    def latent_keys(self) -> list[LatentKey]:
        """Each latent that training needs, once, those of one bucket size together.

        A picture is there once for each way it is placed, and mirrored too where a subset that uses it has `flip_aug`.
        """
        keys = {
            dataset.latent_key(index, flipped)
            for dataset in self.datasets
            for index in dataset.used_record_indices
            for flipped in ((False, True) if dataset.subset_of(dataset.records[index]).flip_aug else (False,))
        }
        return sorted(keys, key=lambda key: (key.placement.bucket, key.path, key.placement.resized, key.flipped))

    def bucket_table(self) -> list[str]:
        """Lines for people: each dataset's buckets with pictures, items, batches and how full these are."""
        return [line for index, dataset in enumerate(self.datasets) for line in _table_lines(index, dataset)]


def _table_lines(index: int, dataset: PlannedDataset) -> list[str]:
    config = dataset.config
    lines = [f"dataset {index}: {len(dataset.items)} items an epoch, batch size {config.batch_size}"]
    lines.append(f"  {'bucket':>11}  {'images':>7}  {'items':>7}  {'batches':>7}  {'fill':>5}")
    for bucket in dataset.buckets:
        num_items, num_batches = len(bucket.item_indices), bucket.num_batches(config.batch_size)
        num_images = len(np.unique(dataset.items[bucket.item_indices]))
        name = f"{bucket.resolution[0]}x{bucket.resolution[1]}"
        fill = num_items / (num_batches * config.batch_size)
        lines.append(f"  {name:>11}  {num_images:>7}  {num_items:>7}  {num_batches:>7}  {fill:>5.0%}")
    lines.append(f"  mean aspect error {dataset.mean_aspect_error:.4f}")
    enlarged = _num_enlarged(dataset)
    if config.enable_bucket and config.bucket_no_upscale and enlarged:
        lines.append(
            f"  {enlarged} images are shorter than bucket_reso_steps {config.bucket_reso_steps} on a side: "
            "enlarged to the smallest bucket of their aspect"
        )
    unused = len(dataset.records) - len(dataset.used_record_indices)
    if unused:
        lines.append(f"  {unused} regularisation images are not used: there are more of them than training items")
    return lines


def _num_enlarged(dataset: PlannedDataset) -> int:
    used = dataset.used_record_indices
    return sum(dataset.placements[index].resized[0] > dataset.records[index].size[0] for index in used)
