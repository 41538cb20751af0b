"""The way into this room: from options to training data, or to everything that is wrong with it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from library.cli.errors import UserError, raise_together
from library.data.buckets import BucketChooser
from library.data.config import DatasetConfig, SubsetConfig
from library.data.options import DatasetOptions, flag_values
from library.data.records import ImageRecord
from library.data.schema import read_dataset_config
from library.data.sources import find_concept_folders, scan_folder

if TYPE_CHECKING:
    from library.data.plan import TrainingData

logger = logging.getLogger(__name__)

_MAX_ITEMS = 50_000_000  # a slip of the keyboard in num_repeats would fill the memory
_MAX_RESIZED_PIXELS = 2**27  # a picture of extreme aspect ratio would fill the memory when its short side is enlarged


def load_training_data(options: DatasetOptions) -> TrainingData:
    """Reads the description of the data, scans the pictures and places them in buckets.

    Only headers of pictures are read, and what takes long to import (NumPy) is imported when all is well. Raises
    `UserError` with everything that is wrong.
    """
    raise_together(options.problems())
    problems: list[UserError] = []
    scanned = [(config, _scan(config, problems)) for config in _read_configs(options, problems)]
    for config, records in scanned:
        problems += _planning_problems(config, records)
    raise_together(problems)

    from library.data.plan import PlannedDataset, TrainingData

    return TrainingData(tuple(PlannedDataset(config, records) for config, records in scanned))


def _read_configs(options: DatasetOptions, problems: list[UserError]) -> list[DatasetConfig]:
    if options.dataset_config is None:
        return _from_folders(options, problems)
    for name in ("train_data_dir", "reg_data_dir"):
        if getattr(options, name) is not None:
            logger.warning("--%s is ignored: --dataset_config says where the pictures are", name)
    try:
        configs, found = read_dataset_config(options)
    except UserError as error:
        problems.append(error)
        return []
    problems += found
    return configs


def _from_folders(options: DatasetOptions, problems: list[UserError]) -> list[DatasetConfig]:
    """One dataset of the folders in `--train_data_dir` and `--reg_data_dir`."""
    if options.train_data_dir is None or options.resolution is None:
        raise ValueError("DatasetOptions.problems() was not looked at")
    subsets = _folder_subsets(options, options.train_data_dir, "--train_data_dir", False, problems)
    if options.reg_data_dir is not None:
        subsets += _folder_subsets(options, options.reg_data_dir, "--reg_data_dir", True, problems)
    config = DatasetConfig(place="--train_data_dir", subsets=tuple(subsets), **flag_values(options, "dataset"))
    problems += config.bucket_settings.problems("--")
    return [config]


def _folder_subsets(
    options: DatasetOptions, parent: str, flag: str, is_reg: bool, problems: list[UserError]
) -> list[SubsetConfig]:
    try:
        folders = find_concept_folders(parent, flag)
    except UserError as error:
        problems.append(error)
        return []
    return [
        SubsetConfig(
            place=flag,
            image_dir=folder.path,
            class_tokens=folder.class_tokens,
            is_reg=is_reg,
            **{**flag_values(options, "subset"), "num_repeats": folder.num_repeats},
        )
        for folder in folders
    ]


def _scan(config: DatasetConfig, problems: list[UserError]) -> list[ImageRecord]:
    records: list[ImageRecord] = []
    for index, subset in enumerate(config.subsets):
        try:
            records += scan_folder(subset, index)
        except UserError as error:
            problems.append(error)
    if config.subsets and all(subset.is_reg for subset in config.subsets):
        problems.append(
            UserError(
                f"{config.place} has regularisation pictures only", hint="add a subset without is_reg to train on"
            )
        )
    return records


def _planning_problems(config: DatasetConfig, records: list[ImageRecord]) -> Iterator[UserError]:
    """What would make items or pictures of a size that fills the memory."""
    num_items = sum(record.num_repeats for record in records)
    if num_items > _MAX_ITEMS:
        most = max(config.subsets, key=lambda subset: subset.num_repeats)
        yield UserError(
            f"{config.place} has {num_items} items an epoch, pictures times repeats: more than {_MAX_ITEMS}",
            hint=f"lower the {most.num_repeats} repeats of {most.image_dir}",
        )
    if any(config.bucket_settings.problems("")):
        return  # reported already, and without buckets pictures have no place
    chooser = BucketChooser(config.bucket_settings)
    for record in records:
        width, height = chooser.place(record.size).resized
        if width * height > _MAX_RESIZED_PIXELS:
            yield UserError(
                f"picture {record.path} is too thin to train on: {record.size[0]}x{record.size[1]}",
                hint="crop it, or remove it from the folder",
            )
