"""Validation split: which images are held out of training for the validation loss, and how they are used.

The split depends on the file names and `validation_seed` alone, not on `--seed` or repeats, so that a resumed run, and
one with another seed, validates on the same images and never trains on them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from library.cli.errors import UserError, listed, plural
from library.data.captions import with_whole_captions
from library.data.config.config import DatasetConfig, SubsetConfig
from library.data.randomness import derive_seed
from library.data.real_paths import RealPaths
from library.data.records import ImageRecord

logger = logging.getLogger(__name__)

Described = tuple[DatasetConfig, list[ImageRecord]]

_MAX_NAMES_IN_WARNING = 5


def split_off(described: Sequence[Described]) -> tuple[list[Described], list[Described]]:
    """(training, held out): the datasets with their records, without empty ones.

    An image that one subset holds out is trained in no other. Raises `UserError` if a split holds out no image, or if
    none is left to train on.
    """
    if not any(_holds_out(subset) for config, _ in described for subset in config.subsets):
        return list(described), []
    held = [_held_out(config, records) for config, records in described]
    real = RealPaths()
    paths = {real.file(record.path) for records in held for record in records}
    if not paths:
        raise UserError(
            "validation_split holds out no image: it is less than one image",
            hint="give a larger --validation_split, or a separate folder with validation_split = 1.0",
        )
    left = [(config, [each for each in records if real.file(each.path) not in paths]) for config, records in described]
    _warn_held_out_elsewhere(described, held, left)
    left = [(config, records) for config, records in left if any(not record.is_reg for record in records)]
    if not left:
        raise UserError(
            "validation_split holds out every image: none is left to train on", hint="lower validation_split"
        )
    pairs = zip(described, held, strict=True)
    return left, [(_without_augmentation(config), _once(records)) for (config, _), records in pairs if records]


def _holds_out(subset: SubsetConfig) -> bool:
    return subset.validation_split > 0 and not subset.is_reg


def _held_out(config: DatasetConfig, records: Sequence[ImageRecord]) -> list[ImageRecord]:
    """The held-out records of a dataset, each subset's fraction; the rounding remainder is added to the next one."""
    by_subset: list[list[ImageRecord]] = [[] for _ in config.subsets]
    for record in records:
        by_subset[record.subset_index].append(record)
    held: list[ImageRecord] = []
    wanted = 0.0
    for subset, found in zip(config.subsets, by_subset, strict=True):
        if not _holds_out(subset):
            continue
        wanted += len(found) * subset.validation_split
        most = len(found) if subset.validation_split == 1 else max(0, len(found) - 1)
        count = min(most, int(wanted - len(held) + 0.5))
        held += _shuffled(found, subset.validation_seed)[:count]
    return held


def _shuffled(records: Sequence[ImageRecord], seed: int) -> list[ImageRecord]:
    """In an order that depends on names and seed: adding or removing images keeps the order of the others."""
    return sorted(records, key=lambda record: derive_seed("validation", seed, record.key))


def _warn_held_out_elsewhere(
    described: Sequence[Described], held: Sequence[Sequence[ImageRecord]], left: Sequence[Described]
) -> None:
    """Warns of subsets that lose images because another one holds them out."""
    for (config, records), of_dataset, (_, kept) in zip(described, held, left, strict=True):
        own = {record.path for record in of_dataset} | {record.path for record in kept}
        others = [record for record in records if record.path not in own]
        for index in sorted({record.subset_index for record in others}):
            keys = [record.key for record in others if record.subset_index == index]
            logger.warning(
                "%s: %s not trained, since another subset holds them out: %s",
                config.subsets[index].key_path, plural(len(keys), "image is", "images are"),
                listed(keys, _MAX_NAMES_IN_WARNING),
            )  # fmt: skip


def _without_augmentation(config: DatasetConfig) -> DatasetConfig:
    """Held-out images are used without augmentation, with their whole caption."""
    subsets = (
        replace(
            with_whole_captions(subset),
            num_repeats=1,
            color_aug=False,
            flip_aug=False,
            face_crop_aug_range=None,
            random_crop=False,
        )
        for subset in config.subsets
    )
    return replace(config, subsets=tuple(subsets))


def _once(records: Sequence[ImageRecord]) -> list[ImageRecord]:
    return [replace(record, num_repeats=1) for record in records]
