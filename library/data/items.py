"""Everything random about one use of a picture: a function of its place in the run alone."""

from __future__ import annotations

from library.data.captions import final_caption
from library.data.plan import PlannedDataset
from library.data.randomness import keyed_random
from library.data.records import Item, MicroBatch, StepClock


def draw_items(dataset: PlannedDataset, micro_batch: MicroBatch, seed: int, clock: StepClock) -> list[Item]:
    """The items of a micro-batch, in order."""
    step = clock.step_of(micro_batch)
    return [
        _draw_item(dataset, item, (seed, micro_batch.epoch, micro_batch.first_position + offset), step, clock.num_steps)
        for offset, item in enumerate(micro_batch.item_indices)
    ]


def _draw_item(
    dataset: PlannedDataset, item: int, place: tuple[int, int, int], step: int, num_steps: int
) -> Item:
    """`place`: seed, epoch, position in the plan. Each purpose draws from a generator of its own."""
    record_index = int(dataset.items[item])
    record = dataset.records[record_index]
    subset = dataset.subset_of(record)
    caption = final_caption(
        record.caption, subset, keyed_random("caption", *place), epoch=place[1] + 1, step=step, num_steps=num_steps
    )
    flipped = subset.flip_aug and keyed_random("flip", *place).random() < 0.5
    return Item(record_index, caption, dataset.latent_key(record_index, flipped), None, record.is_reg)
