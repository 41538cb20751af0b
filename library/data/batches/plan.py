"""The plan of an epoch: items (images times repeats), buckets, and shuffled batches as a function of (seed, epoch)."""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np

from library.cli.errors import plural
from library.data.buckets import BucketChooser, aspect_error, fit_to_bucket
from library.data.captions import tag_frequency
from library.data.collector import collector_paused
from library.data.config.config import DatasetConfig, SubsetConfig
from library.data.randomness import derive_seed
from library.data.records import ImageRecord, LatentKey, MicroBatch, Size, size_text

_MAX_BUCKETS_NAMED = 5


@dataclass(frozen=True)
class Bucket:
    """The items of a dataset that are trained at one size."""

    resolution: Size
    item_indices: np.ndarray  # (items,) int64

    def num_batches(self, batch_size: int) -> int:
        return math.ceil(len(self.item_indices) / batch_size)


@dataclass(frozen=True)
class SubsetSummary:
    """The facts of a subset that model metadata records."""

    config: SubsetConfig
    img_count: int
    tag_frequency: dict[str, int]


class PlannedDataset:
    """One dataset with its images assigned to buckets.

    An item is one use of an image in an epoch. `items[i]` is the index of its record.
    """

    def __init__(self, config: DatasetConfig, records: Sequence[ImageRecord], num_skipped: int = 0):
        """num_skipped: images that `skip_image_resolution` has skipped."""
        self.config = config
        self.num_skipped = num_skipped
        self.records = tuple(records)
        self.items = _make_items(self.records)  # (items,) int64
        # images of one size have the same placement: there are few kinds and many records
        kinds: dict[tuple[Size, Size | None], int] = {}
        kind_of = (kinds.setdefault(_kind(record), len(kinds)) for record in self.records)
        self._kind_of = np.fromiter(kind_of, dtype=np.int32, count=len(self.records))
        chooser = BucketChooser(config.bucket_settings)
        self._kinds = [
            (size, chooser.assign(size) if bucket is None else fit_to_bucket(size, bucket)) for size, bucket in kinds
        ]
        self.placements = tuple(self._kinds[kind][1] for kind in self._kind_of)
        self.buckets = self._make_buckets()

    def _make_buckets(self) -> tuple[Bucket, ...]:
        sizes = sorted({placement.bucket for _, placement in self._kinds})
        bucket_of_kind = np.array([sizes.index(placement.bucket) for _, placement in self._kinds], dtype=np.int64)
        bucket_of_item = bucket_of_kind[self._kind_of[self.items]] if len(self.items) else self.items
        by_bucket = np.argsort(bucket_of_item, kind="stable")
        cuts = np.searchsorted(bucket_of_item[by_bucket], np.arange(1, len(sizes)))
        parts = np.split(by_bucket, cuts) if sizes else []
        return tuple(Bucket(size, part) for size, part in zip(sizes, parts, strict=True) if len(part))

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
            legacy_npz_path=record.legacy_npz.path if record.legacy_npz else None,
            mask_path=record.mask_path,
            num_bytes=record.num_bytes,
            ctime_ns=record.ctime_ns,
            cache_ending=self.config.cache_ending,
            member=record.member,
        )

    @property
    def used_record_indices(self) -> list[int]:
        """The records that have items; surplus regularisation images have none."""
        return np.flatnonzero(self.uses).tolist()  # linear, unlike sorting

    @property
    def num_micro_batches(self) -> int:
        return sum(bucket.num_batches(self.config.batch_size) for bucket in self.buckets)

    @property
    def num_train_images(self) -> int:
        """Training images, repeats counted."""
        return sum(record.num_repeats for record in self.records if not record.is_reg)

    @property
    def num_reg_images(self) -> int:
        """Regularisation images, repeats counted, before they are matched to the training images."""
        return sum(record.num_repeats for record in self.records if record.is_reg)

    @property
    def mean_aspect_error(self) -> float:
        """Mean over the images used of |aspect ratio of bucket - aspect ratio of image|."""
        errors = np.array([abs(aspect_error(size, placement.bucket)) for size, placement in self._kinds])
        counts = self._used_of_kinds()
        return float(errors @ counts / counts.sum()) if len(self.items) else 0.0

    @property
    def num_upscaled(self) -> int:
        """Images used that are upscaled to fill their bucket."""
        is_upscaled = [placement.resized[0] > size[0] for size, placement in self._kinds]
        return int(self._used_of_kinds() @ np.array(is_upscaled, dtype=np.int64))

    def _used_of_kinds(self) -> np.ndarray:
        """How many images of each kind have items: (kinds,) int64."""
        return np.bincount(self._kind_of[self.uses > 0], minlength=len(self._kinds))

    @property
    def uses(self) -> np.ndarray:
        """How often each record is used in an epoch: (records,) int64."""
        return np.bincount(self.items, minlength=len(self.records))

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
            SubsetSummary(config, len(each), tag_frequency(each, config.caption_separator))
            for config, each in zip(self.config.subsets, captions, strict=True)
        ]


def _kind(record: ImageRecord) -> tuple[Size, Size | None]:
    return record.size, record.legacy_npz.bucket if record.legacy_npz else None


def _make_items(records: Sequence[ImageRecord]) -> np.ndarray:
    """Record indices, once for each use in an epoch: training images times repeats, then regularisation images."""
    repeats = np.fromiter((record.num_repeats for record in records), dtype=np.int64, count=len(records))
    is_reg = np.fromiter((record.is_reg for record in records), dtype=bool, count=len(records))
    train, reg = np.flatnonzero(~is_reg), np.flatnonzero(is_reg)
    items = np.repeat(train, repeats[train])
    uses = match_regularisation(repeats[reg].tolist(), len(items))
    return np.concatenate([items, np.repeat(reg, np.array(uses, dtype=np.int64))])


def match_regularisation(repeats: Sequence[int], num_items: int) -> list[int]:
    """How often each regularisation image is used, so that all uses add up to `num_items` (prior preservation).

    Each gets its repeats in turn up to that number; if they are too few, one more use each, round after round.
    """
    uses, room = [], num_items
    for count in repeats:
        uses.append(min(count, room))
        room -= uses[-1]
    if uses and room:
        rounds, rest = divmod(room, len(uses))
        uses = [count + rounds + (index < rest) for index, count in enumerate(uses)]
    return uses


class EpochBatches(Sequence[MicroBatch]):
    """The micro-batches of an epoch in order. Each is made when it is accessed: an epoch can have millions."""

    def __init__(self, epoch: int, items: np.ndarray, lengths: np.ndarray, dataset_indices: np.ndarray):
        """items: (items,) int64, those of one micro-batch after the other, indices into the items of its dataset.

        lengths: (micro-batches,) int64, items of each. dataset_indices: (micro-batches,) int64.
        """
        self._epoch = epoch
        # memory views return Python numbers, several times faster than arrays
        self._items = np.ascontiguousarray(items, dtype=np.int64).data
        self._starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64).data
        self._dataset_indices = np.ascontiguousarray(dataset_indices, dtype=np.int64).data

    def __len__(self) -> int:
        return len(self._dataset_indices)

    @overload
    def __getitem__(self, index: int) -> MicroBatch: ...
    @overload
    def __getitem__(self, index: slice) -> list[MicroBatch]: ...
    def __getitem__(self, index: int | slice) -> MicroBatch | list[MicroBatch]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        if not 0 <= index < len(self._dataset_indices):
            index = range(len(self))[index]
        start, end = self._starts[index], self._starts[index + 1]
        return MicroBatch(self._epoch, index, self._dataset_indices[index], tuple(self._items[start:end]), start)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class TrainingData:
    """All datasets of a run, and the images held out of them for validation."""

    datasets: tuple[PlannedDataset, ...]
    validation: TrainingData | None = None

    @property
    def num_items(self) -> int:
        """Items per epoch."""
        return sum(len(dataset.items) for dataset in self.datasets)

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches per epoch, the same in every epoch."""
        return sum(dataset.num_micro_batches for dataset in self.datasets)

    @property
    def num_train_images(self) -> int:
        return sum(dataset.num_train_images for dataset in self.datasets)

    @property
    def num_reg_images(self) -> int:
        return sum(dataset.num_reg_images for dataset in self.datasets)

    def batches_of_epoch(self, seed: int, epoch: int) -> EpochBatches:
        """The micro-batches of an epoch in order: a function of the data, the seed and the epoch alone.

        Items are shuffled within their bucket and split into batches; the batches of all buckets are then shuffled.
        """
        # the legacy generator: its streams stay the same in all versions of NumPy
        rng = np.random.RandomState(np.random.MT19937(derive_seed("plan", seed, epoch)))
        shuffled, lengths, sources = [], [], []
        for dataset_index, dataset in enumerate(self.datasets):
            for bucket in dataset.buckets:
                shuffled.append(rng.permutation(bucket.item_indices))
                lengths.append(_batch_lengths(len(bucket.item_indices), dataset.config.batch_size))
                sources.append(np.full(len(lengths[-1]), dataset_index))
        if not shuffled:
            return EpochBatches(epoch, *np.zeros((3, 0), dtype=np.int64))
        lengths_in_turn = np.concatenate(lengths)
        order = rng.permutation(len(lengths_in_turn))
        items = _reorder(np.concatenate(shuffled), lengths_in_turn, order)
        return EpochBatches(epoch, items, lengths_in_turn[order], np.concatenate(sources)[order])

    def latent_keys(self) -> list[LatentKey]:
        """The keys of all latents for training and validation, without duplicates, grouped by bucket size.

        An image has one for each of its placements, and one flipped if a subset that uses it has `flip_aug`.
        """
        with collector_paused():
            return self._latent_keys()

    def _latent_keys(self) -> list[LatentKey]:
        by_bucket: dict[Size, list[LatentKey]] = {}
        latest: dict[Size, tuple] = {}  # in each bucket
        unsorted: set[Size] = set()  # seldom any: a scan sorts by path
        for dataset in self.all_datasets:
            for index in dataset.used_record_indices:
                for flipped in (False, True) if dataset.subset_of(dataset.records[index]).flip_aug else (False,):
                    key = dataset.latent_key(index, flipped)
                    bucket, order = key.placement.bucket, _order(key)
                    if latest.get(bucket, ()) >= order:
                        unsorted.add(bucket)
                    latest[bucket] = order
                    by_bucket.setdefault(bucket, []).append(key)
        for bucket in unsorted:
            by_bucket[bucket] = _without_duplicates(by_bucket[bucket])
        return [key for _, keys in sorted(by_bucket.items()) for key in keys]

    @property
    def all_datasets(self) -> tuple[PlannedDataset, ...]:
        """The training datasets and those of held-out images."""
        return self.datasets if self.validation is None else (*self.datasets, *self.validation.datasets)

    def digest(self) -> str:
        """Equal digests mean equal images, captions and settings, in whatever folders they are."""
        digest = hashlib.blake2b(digest_size=16)
        for dataset in self.all_datasets:
            settings = replace(dataset.config, key_path="", subsets=tuple(map(_without_paths, dataset.config.subsets)))
            digest.update(repr(settings).encode("utf-8", "surrogatepass"))
            for record in dataset.records:
                facts = (record.key, record.size, record.caption, record.num_repeats, record.subset_index)
                digest.update(repr(facts).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def bucket_table(self) -> list[str]:
        """Lines for the log: each dataset's buckets with images, items, batches and how full these are."""
        lines = [line for dataset in self.datasets for line in _table_lines(dataset)]
        if self.validation is not None:
            lines.append(
                f"held out for validation: {plural(self.validation.num_items, 'image')} in"
                f" {plural(self.validation.num_micro_batches, 'batch', 'batches')}"
            )
        return lines


def _order(key: LatentKey) -> tuple:
    """What keys of a bucket are sorted by, first what differs most: comparing the keys takes several times as long."""
    placement = key.placement
    return (
        key.path,
        placement.resized,
        key.flipped,
        placement.crop,
        key.image_size,
        key.mtime_ns,
        key.alpha_is_mask,
        key.interpolation or "",
        key.legacy_npz_path or "",
        key.mask_path or "",
    )


def _without_duplicates(keys: list[LatentKey]) -> list[LatentKey]:
    """Sorted; of equal ones the last."""
    by_order = {_order(key): key for key in keys}
    return [by_order[order] for order in sorted(by_order)]


def _without_paths(subset: SubsetConfig) -> SubsetConfig:
    return replace(
        subset, key_path="", image_dir=None, metadata_file=None, conditioning_data_dir=None, cache_info=False
    )


def _batch_lengths(num_items: int, batch_size: int) -> np.ndarray:
    """Items of each batch of a bucket; the last may be smaller."""
    starts = np.arange(0, num_items, batch_size)
    return np.minimum(batch_size, num_items - starts)


def _reorder(items: np.ndarray, lengths: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Reorders consecutive runs of items of these lengths."""
    starts = np.cumsum(lengths) - lengths
    new_lengths = lengths[order]
    new_starts = np.cumsum(new_lengths) - new_lengths
    return items[np.arange(len(items)) + np.repeat(starts[order] - new_starts, new_lengths)]


def _table_lines(dataset: PlannedDataset) -> list[str]:
    config = dataset.config
    lines = [f"{config.key_path}: {plural(len(dataset.items), 'item')} per epoch, batch size {config.batch_size}"]
    lines.append(f"  {'bucket':>11}  {'images':>7}  {'repeats':>7}  {'batches':>7}  {'fill':>5}")
    for bucket in dataset.buckets:
        num_items, num_batches = len(bucket.item_indices), bucket.num_batches(config.batch_size)
        num_images = len(np.unique(dataset.items[bucket.item_indices]))
        fill = num_items / (num_batches * config.batch_size)
        lines.append(
            f"  {size_text(bucket.resolution):>11}  {num_images:>7}  {num_items:>7}  {num_batches:>7}  {fill:>5.0%}"
        )
    lines.append(f"  mean aspect error {dataset.mean_aspect_error:.4f}")
    notes = (_skipped(dataset), _small_batches(dataset), _upscaled(dataset), *_regularisation_notes(dataset))
    return lines + [f"  {note}" for note in notes if note is not None]


def _skipped(dataset: PlannedDataset) -> str | None:
    largest = dataset.config.skip_image_resolution
    if largest is None:
        return None
    skipped = plural(dataset.num_skipped, "image is", "images are")
    return f"{skipped} skipped: not larger than skip_image_resolution {size_text(largest)}"


def _small_batches(dataset: PlannedDataset) -> str | None:
    """Buckets with less than half a batch of items."""
    batch_size = dataset.config.batch_size
    small = [bucket for bucket in dataset.buckets if 2 * len(bucket.item_indices) < batch_size]
    if not small:
        return None
    named = [f"{size_text(each.resolution)} ({len(each.item_indices)} of {batch_size})" for each in small]
    rest = f" and {len(small) - _MAX_BUCKETS_NAMED} more" if len(small) > _MAX_BUCKETS_NAMED else ""
    buckets = plural(len(small), "bucket fills", "buckets fill")
    return (
        f"{buckets} less than half of a batch: {', '.join(named[:_MAX_BUCKETS_NAMED])}{rest}: these images are "
        "trained in small batches; add images, use larger bucket_reso_steps or a smaller batch size"
    )


def _upscaled(dataset: PlannedDataset) -> str | None:
    config, num_upscaled = dataset.config, dataset.num_upscaled
    if not (config.enable_bucket and config.bucket_no_upscale and num_upscaled):
        return None
    return (
        f"{plural(num_upscaled, 'image is', 'images are')} shorter than bucket_reso_steps {config.bucket_reso_steps} on"
        " a side: upscaled to the smallest bucket of their aspect ratio"
    )


def _regularisation_notes(dataset: PlannedDataset) -> Iterator[str]:
    """How too many or too few regularisation images are used."""
    uses = dataset.uses
    is_reg = np.fromiter((record.is_reg for record in dataset.records), dtype=bool, count=len(uses))
    repeats = np.fromiter((record.num_repeats for record in dataset.records), dtype=np.int64, count=len(uses))
    num_unused = int((is_reg & (uses == 0)).sum())
    num_less = int((is_reg & (uses > 0) & (uses < repeats)).sum())
    more = uses[is_reg & (uses > repeats)]
    one, several = "regularisation image is", "regularisation images are"
    if num_unused:
        yield f"{plural(num_unused, one, several)} not used: there are more of them than training items"
    if num_less:
        yield f"{plural(num_less, one, several)} used fewer times than their repeats"
    if len(more):
        yield (
            f"{plural(len(more), one, several)} used more often than their repeats, up to {more.max()} times, "
            f"to match the {plural(dataset.num_train_images, 'training item')}"
        )
