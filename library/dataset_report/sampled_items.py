"""Which pictures the report shows, and what is drawn for them in the first epochs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from library.data.batches.items import draw_items
from library.data.batches.plan import PlannedDataset, TrainingData
from library.data.records import Item, StepCounter

_MOST_USES = 6  # of a picture: enough to show what shuffling and dropping do
_MOST_EPOCHS = 4


@dataclass(frozen=True, slots=True, order=True)
class PictureId:
    """A picture of a dataset, by its place."""

    dataset: int
    record: int


@dataclass(frozen=True)
class DrawSettings:
    """What randomness depends on: the seed, and how batches become steps."""

    seed: int
    is_given: bool  # whether the user chose the seed; otherwise training draws another
    clock: StepCounter


def choose_pictures(data: TrainingData, most: int) -> list[PictureId]:
    """All pictures in order, or `most` of them spread evenly."""
    totals = [len(dataset.records) for dataset in data.datasets]
    total = sum(totals)
    if total <= most:
        return [PictureId(place, record) for place, count in enumerate(totals) for record in range(count)]
    chosen, place, before = [], 0, 0
    for number in (index * total // most for index in range(most)):
        while number >= before + totals[place]:
            before += totals[place]
            place += 1
        chosen.append(PictureId(place, number - before))
    return chosen


def draw_uses(data: TrainingData, pictures: Sequence[PictureId], draw: DrawSettings) -> dict[PictureId, list[Item]]:
    """The first uses of each picture, as training draws them. Pictures that are never used are left out."""
    missing = {picture: _MOST_USES for picture in _used(data, pictures)}
    uses: dict[PictureId, list[Item]] = {picture: [] for picture in missing}
    num_epochs = math.ceil(draw.clock.num_steps / draw.clock.steps_per_epoch)
    for epoch in range(min(num_epochs, _MOST_EPOCHS)):
        if not missing:
            break
        for micro_batch in data.batches_of_epoch(draw.seed, epoch):
            dataset = data.datasets[micro_batch.dataset_index]
            records = dataset.items[list(micro_batch.item_indices)].tolist()
            if missing.keys().isdisjoint(PictureId(micro_batch.dataset_index, record) for record in records):
                continue
            for item in draw_items(dataset, micro_batch, draw.seed, draw.clock):
                picture = PictureId(micro_batch.dataset_index, item.record_index)
                if picture in missing:
                    uses[picture].append(item)
                    missing[picture] -= 1
                    if not missing[picture]:
                        del missing[picture]
    return uses


def _used(data: TrainingData, pictures: Sequence[PictureId]) -> list[PictureId]:
    used = [set(dataset.used_record_indices) for dataset in data.datasets]
    return [picture for picture in pictures if picture.record in used[picture.dataset]]


def unused_item(dataset: PlannedDataset, record_index: int) -> Item:
    """How a picture that no epoch uses would look."""
    record = dataset.records[record_index]
    return Item(record_index, record.caption, dataset.latent_key(record_index, False), None, record.is_reg)
