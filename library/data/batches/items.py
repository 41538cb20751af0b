"""The random draws of one use of an image (caption, flip, crop, colours): a function of its position in the run."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from library.data.batches.plan import PlannedDataset
from library.data.captions import final_caption
from library.data.config.config import SubsetConfig
from library.data.images.augmentations import draw_colour, face_placement, random_placement
from library.data.images.face_names import split_face_name
from library.data.randomness import derive_seed, keyed_random
from library.data.records import ImageRecord, Item, MicroBatch, Placement, StepCounter


@dataclass(frozen=True, slots=True)
class ItemPosition:
    """The position in the run at which an item is used."""

    seed: int
    epoch: int
    position: int  # in the epoch's plan, counted in items
    step: int  # optimizer steps done before it
    num_steps: int  # of the whole run

    def rng(self, purpose: str) -> random.Random:
        """The generator of one purpose: enabling one augmentation does not change the others."""
        return keyed_random(purpose, self.seed, self.epoch, self.position)

    @property
    def mask_seed(self) -> int:
        """Of the mask that is drawn for inpainting."""
        return derive_seed("inpainting mask", self.seed, self.epoch, self.position)


def item_positions(micro_batch: MicroBatch, seed: int, clock: StepCounter) -> list[ItemPosition]:
    """The positions of a micro-batch's items, in order."""
    step, first = clock.step_of(micro_batch), micro_batch.first_position
    return [
        ItemPosition(seed, micro_batch.epoch, first + offset, step, clock.num_steps)
        for offset in range(len(micro_batch.item_indices))
    ]


def draw_items(dataset: PlannedDataset, micro_batch: MicroBatch, seed: int, clock: StepCounter) -> list[Item]:
    """The items of a micro-batch, in order."""
    positions = item_positions(micro_batch, seed, clock)
    return [
        draw_item(dataset, item, position) for item, position in zip(micro_batch.item_indices, positions, strict=True)
    ]


def draw_item(dataset: PlannedDataset, item_index: int, position: ItemPosition) -> Item:
    """An item of the dataset as used at a position. Each purpose has its own generator."""
    record_index = int(dataset.items[item_index])
    record = dataset.records[record_index]
    subset = dataset.subset_of(record)
    caption = final_caption(
        record.caption,
        subset,
        position.rng("caption"),
        epoch=position.epoch + 1,
        step=position.step,
        num_steps=position.num_steps,
    )
    flipped = subset.flip_aug and position.rng("flip").random() < 0.5
    key = dataset.latent_key(record_index, flipped)
    if subset.has_random_placement:
        key = replace(key, placement=_draw_placement(key.placement, record, subset, position.rng("crop")))
    colour = draw_colour(position.rng("colour")) if subset.color_aug else None
    return Item(record_index, caption, key, colour, record.is_reg, position.mask_seed)


def _draw_placement(placement: Placement, record: ImageRecord, subset: SubsetConfig, rng: random.Random) -> Placement:
    """A crop around the face in the file name, else a random crop with `random_crop`, else unchanged."""
    if subset.face_crop_aug_range is not None:
        named = split_face_name(os.path.splitext(os.path.basename(record.path))[0])
        if named is not None and named[1].is_in(record.size):
            return face_placement(
                record.size,
                placement.bucket,
                named[1],
                crop_range=subset.face_crop_aug_range,
                rng=rng,
                also_random=subset.random_crop,
            )
    return random_placement(placement, rng) if subset.random_crop else placement


def item_and_replacements(dataset: PlannedDataset, item_index: int) -> Iterator[int]:
    """The item, then one item of each other image of its bucket, in the bucket's order, wrapping around."""
    yield item_index
    seen = {int(dataset.items[item_index])}
    resolution = dataset.placements[int(dataset.items[item_index])].bucket
    in_bucket = next(bucket.item_indices for bucket in dataset.buckets if bucket.resolution == resolution)
    start = int(np.searchsorted(in_bucket, item_index))
    for item in np.roll(in_bucket, -start).tolist():
        record_index = int(dataset.items[item])
        if record_index not in seen:
            seen.add(record_index)
            yield item
