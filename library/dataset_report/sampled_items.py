"""Which images the page shows, and their random captions, crops and flips in the first epochs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from library.data.batches.items import draw_items
from library.data.batches.plan import PlannedDataset, TrainingData
from library.data.images.inpaint_masks import MaskShares
from library.data.records import Item, StepCounter

_MOST_USES = 6  # of an image: enough to show shuffling and dropout
_MOST_EPOCHS = 4


@dataclass(frozen=True, slots=True, order=True)
class ImageId:
    """An image, by the indices of its dataset and record."""

    dataset: int
    record: int

    @property
    def anchor(self) -> str:
        """Where the page has it."""
        return f"p{self.dataset}-{self.record}"


@dataclass(frozen=True)
class DrawSettings:
    """What random draws depend on: the seed, and the optimizer step of each batch.

    `masks`: how masks are drawn, for inpainting.
    """

    seed: int
    is_given: bool  # whether the user gave --seed; otherwise training draws another
    clock: StepCounter
    masks: MaskShares | None = None


def choose_images(data: TrainingData, most: int) -> list[ImageId]:
    """All images in order, or `most` of them spread evenly."""
    totals = [len(dataset.records) for dataset in data.datasets]
    total = sum(totals)
    if total <= most:
        return [ImageId(dataset, record) for dataset, count in enumerate(totals) for record in range(count)]
    chosen, dataset, before = [], 0, 0
    for number in (index * total // most for index in range(most)):
        while number >= before + totals[dataset]:
            before += totals[dataset]
            dataset += 1
        chosen.append(ImageId(dataset, number - before))
    return chosen


def draw_uses(data: TrainingData, images: Sequence[ImageId], draw: DrawSettings) -> dict[ImageId, list[Item]]:
    """The first uses of each image, as training draws them. Images that are never used are skipped."""
    missing = {image: _MOST_USES for image in _used(data, images)}
    uses: dict[ImageId, list[Item]] = {image: [] for image in missing}
    num_epochs = math.ceil(draw.clock.num_steps / draw.clock.steps_per_epoch)
    for epoch in range(min(num_epochs, _MOST_EPOCHS)):
        if not missing:
            break
        for micro_batch in data.batches_of_epoch(draw.seed, epoch):
            dataset = data.datasets[micro_batch.dataset_index]
            records = dataset.items[list(micro_batch.item_indices)].tolist()
            if missing.keys().isdisjoint(ImageId(micro_batch.dataset_index, record) for record in records):
                continue
            for item in draw_items(dataset, micro_batch, draw.seed, draw.clock):
                image = ImageId(micro_batch.dataset_index, item.record_index)
                if image in missing:
                    uses[image].append(item)
                    missing[image] -= 1
                    if not missing[image]:
                        del missing[image]
    return uses


def _used(data: TrainingData, images: Sequence[ImageId]) -> list[ImageId]:
    used = [set(dataset.used_record_indices) for dataset in data.datasets]
    return [image for image in images if image.record in used[image.dataset]]


def unused_item(dataset: PlannedDataset, record_index: int) -> Item:
    """The item of an image that no epoch uses, without augmentation."""
    record = dataset.records[record_index]
    return Item(record_index, record.caption, dataset.latent_key(record_index, False), None, record.is_reg)
