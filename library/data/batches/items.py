"""Everything random about one use of an image: a function of its place in the run alone."""

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
from library.data.randomness import keyed_random
from library.data.records import ImageRecord, Item, MicroBatch, Placement, StepCounter


@dataclass(frozen=True, slots=True)
class ItemPosition:
    """Where in the run an item is used."""

    seed: int
    epoch: int
    position: int  # in the plan, counted in items
    step: int  # optimizer steps done before it
    num_steps: int  # of the whole run

    def rng(self, purpose: str) -> random.Random:
        """The generator of one purpose: switching one augmentation on changes nothing about the others."""
        return keyed_random(purpose, self.seed, self.epoch, self.position)


def item_positions(micro_batch: MicroBatch, seed: int, clock: StepCounter) -> list[ItemPosition]:
    """The places of a micro-batch's items, in order."""
    step, first = clock.step_of(micro_batch), micro_batch.first_position
    return [
        ItemPosition(seed, micro_batch.epoch, first + offset, step, clock.num_steps)
        for offset in range(len(micro_batch.item_indices))
    ]


def draw_items(dataset: PlannedDataset, micro_batch: MicroBatch, seed: int, clock: StepCounter) -> list[Item]:
    """The items of a micro-batch, in order."""
    places = item_positions(micro_batch, seed, clock)
    return [draw_item(dataset, item, place) for item, place in zip(micro_batch.item_indices, places, strict=True)]


def draw_item(dataset: PlannedDataset, item_index: int, place: ItemPosition) -> Item:
    """An item of the dataset as it is used at a place. Each purpose draws from a generator of its own."""
    record_index = int(dataset.items[item_index])
    record = dataset.records[record_index]
    subset = dataset.subset_of(record)
    caption = final_caption(
        record.caption, subset, place.rng("caption"), epoch=place.epoch + 1, step=place.step, num_steps=place.num_steps
    )
    flipped = subset.flip_aug and place.rng("flip").random() < 0.5
    key = dataset.latent_key(record_index, flipped)
    if subset.has_random_placement:
        key = replace(key, placement=_draw_placement(key.placement, record, subset, place.rng("crop")))
    colour = draw_colour(place.rng("colour")) if subset.color_aug else None
    return Item(record_index, caption, key, colour, record.is_reg)


def _draw_placement(placement: Placement, record: ImageRecord, subset: SubsetConfig, rng: random.Random) -> Placement:
    """Around the face that the file name gives, else at random with `random_crop`, else as it was."""
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


def items_from(dataset: PlannedDataset, item_index: int) -> Iterator[int]:
    """The item, then for each other image of its bucket one item, in the bucket's order, starting over at its end."""
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
