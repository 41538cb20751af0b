"""Loads the training data: from options to images in buckets, or to all errors in them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from library.cli.errors import UserError, listed, plural, raise_together
from library.data.batches.holdout import split_off
from library.data.buckets import BucketChooser, usable_steps
from library.data.captions import splits_tags, splits_weights
from library.data.collector import collector_paused
from library.data.config.config import DatasetConfig, Source, SubsetConfig
from library.data.config.dataset_file import read_dataset_config
from library.data.config.latent_format import fitted, resolution_problems, with_resolution
from library.data.config.options import CachingOptions, DatasetOptions, flag_values
from library.data.config.validation_rules import caching_problems, legacy_npz_problems, source_problems
from library.data.images.face_names import split_face_name
from library.data.images.image_files import NoImages
from library.data.real_paths import RealPaths
from library.data.records import ImageRecord, LatentFormat, Size, size_text
from library.data.scan.folders import find_concept_folders, scan_folder, with_masks
from library.data.scan.legacy_npz import settle_legacy_latents
from library.data.scan.metadata_file import scan_metadata
from library.data.scan.shards import scan_shards

if TYPE_CHECKING:
    from library.data.batches.plan import TrainingData

logger = logging.getLogger(__name__)

_MAX_NAMES_IN_WARNING = 5
_MAX_ITEMS = 50_000_000  # more, such as by a typing mistake in num_repeats, would fill the memory
_MAX_RESIZED_PIXELS = 2**27  # an image of extreme aspect ratio would fill the memory when it is upscaled

_SCANS = {"folder": scan_folder, "metadata": scan_metadata, "shards": scan_shards}  # by `SubsetConfig.source`


@dataclass(frozen=True)
class _ScannedDataset:
    """A dataset with the images found for it."""

    config: DatasetConfig  # without the subsets in `empty`
    records: list[ImageRecord]
    num_skipped: int  # images skipped by `skip_image_resolution`
    empty: list[NoImages]  # the errors of subsets without images


def load_training_data(
    options: DatasetOptions,
    caching: CachingOptions | None = None,
    *,
    only: Source | None = None,
    latents: LatentFormat = LatentFormat(),  # noqa: B008 - it is frozen
) -> TrainingData:
    """Reads the dataset file or flags, scans the images and assigns them to buckets.

    Only headers of images are read, and NumPy, slow to import, is imported only when there are no errors. `caching`:
    validated against the data if given. `only`: the source that must describe all images, folders or metadata files.
    `latents`: what the model family needs. Raises `UserError` with all errors.
    """
    options = with_resolution(options, latents)
    raise_together([*options.check(), *resolution_problems(options)])
    with collector_paused():
        return _load(options, caching, only, latents)


def _load(
    options: DatasetOptions, caching: CachingOptions | None, only: Source | None, latents: LatentFormat
) -> TrainingData:
    problems: list[UserError] = []
    configs = [fitted(config, latents, problems) for config in _read_configs(options, problems, only)]
    others = list(source_problems(configs, options, only))
    if others:  # no need to scan their images
        raise_together([*problems, *others])
    if caching is not None:
        problems += caching_problems(configs, options, caching)
    scanned = _skip_empty([_scan(config, options, problems) for config in configs], problems)
    for each in scanned:
        problems += _size_problems(each.config, each.records)
    raise_together(problems)
    _spell_folders_alike(scanned)
    for each in scanned:
        _warn_missing_faces(each.config, each.records)
        _warn_split_weights(each.config, each.records)

    to_train, held_out = split_off([(each.config, each.records) for each in scanned])
    num_skipped = {each.config.key_path: each.num_skipped for each in scanned}

    from library.data.batches.plan import PlannedDataset, TrainingData

    planned = tuple(PlannedDataset(config, records, num_skipped[config.key_path]) for config, records in to_train)
    validation = tuple(PlannedDataset(*each) for each in held_out)
    return TrainingData(planned, TrainingData(validation) if validation else None)


def _read_configs(options: DatasetOptions, problems: list[UserError], only: Source | None) -> list[DatasetConfig]:
    options = replace(options, bucket_reso_steps=usable_steps(options.bucket_reso_steps, "--bucket_reso_steps"))
    if options.dataset_config is None:
        if options.in_json is not None:
            return _from_metadata(options, problems)
        if options.shards:
            return _from_shards(options, problems)
        if only == "metadata":  # whatever is in the folder
            hint = "give the metadata file of the images; train_db.py trains on folders of images"
            problems.append(UserError("--in_json is missing", hint=hint))
            return []
        return _from_folders(options, problems)
    for name in ("train_data_dir", "reg_data_dir", "conditioning_data_dir", "in_json", "shards"):
        if getattr(options, name):
            logger.warning("--%s is ignored: --dataset_config gives the images", name)
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
        raise ValueError("DatasetOptions.check() was not called")
    if options.dataset_repeats != 1:
        logger.warning("--dataset_repeats is ignored: the folder names in --train_data_dir give the repeats")
    subsets = _folder_subsets(options, options.train_data_dir, "--train_data_dir", False, problems)
    if options.reg_data_dir is not None:
        subsets += _folder_subsets(options, options.reg_data_dir, "--reg_data_dir", True, problems)
    if all(subset.is_reg for subset in subsets):
        return []  # the error of the folder of training images is reported
    config = DatasetConfig(key_path="--train_data_dir", subsets=tuple(subsets), **flag_values(options, "dataset"))
    problems += config.bucket_settings.problems("--")
    return [config]


def _from_metadata(options: DatasetOptions, problems: list[UserError]) -> list[DatasetConfig]:
    """One dataset of the images in `--in_json`."""
    if options.reg_data_dir is not None:
        logger.warning(
            "--reg_data_dir is ignored with --in_json: metadata files have no regularisation images"
            " (train_network.py takes both in a --dataset_config, in two [[datasets]])"
        )
    if options.conditioning_data_dir is not None:
        logger.warning("--conditioning_data_dir is ignored with --in_json: only folders of images can have masks")
    flags = flag_values(options, "subset")
    subset = SubsetConfig(
        key_path="--in_json", image_dir=options.train_data_dir, metadata_file=options.in_json, **flags
    )
    config = DatasetConfig(key_path="--in_json", subsets=(subset,), **flag_values(options, "dataset"))
    problems += config.bucket_settings.problems("--")
    return [config]


def _from_shards(options: DatasetOptions, problems: list[UserError]) -> list[DatasetConfig]:
    """One dataset of the images in `--shards`, and in the folders in `--reg_data_dir`."""
    subsets = [SubsetConfig(key_path="--shards", shards=options.shards, **flag_values(options, "subset"))]
    if options.reg_data_dir is not None:
        subsets += _folder_subsets(options, options.reg_data_dir, "--reg_data_dir", True, problems)
    config = DatasetConfig(key_path="--shards", subsets=tuple(subsets), **flag_values(options, "dataset"))
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
    masks = None if is_reg else _mask_folder(options, problems)
    return [
        SubsetConfig(
            key_path=flag,
            image_dir=folder.path,
            class_tokens=folder.class_tokens,
            is_reg=is_reg,
            conditioning_data_dir=None if masks is None else _masks_of(folder.path, masks),
            **{**flag_values(options, "subset"), "num_repeats": folder.num_repeats},
        )
        for folder in folders
    ]


def _mask_folder(options: DatasetOptions, problems: list[UserError]) -> str | None:
    folder = options.conditioning_data_dir
    if folder is None or os.path.isdir(folder):
        return folder
    kind = "is a file" if os.path.exists(folder) else "does not exist"
    problems.append(UserError(f"--conditioning_data_dir {folder} {kind}", hint="give the folder of mask images"))
    return None


def _masks_of(concept_folder: str, masks: str) -> str:
    """The subfolder of masks with the same name, or else the folder of all masks."""
    own = os.path.join(masks, os.path.basename(concept_folder))
    return own if os.path.isdir(own) else masks


def _scan(config: DatasetConfig, options: DatasetOptions, problems: list[UserError]) -> _ScannedDataset:
    records: list[ImageRecord] = []
    kept: list[SubsetConfig] = []
    empty: list[NoImages] = []
    skipped: list[ImageRecord] = []
    is_complete = True
    for subset in config.subsets:
        try:
            found = _SCANS[subset.source](subset, len(kept), skip_unreadable=options.skip_bad_images)
            if config.skip_image_resolution is not None:
                skipped += (record for record in found if _is_skipped(record.size, config.skip_image_resolution))
                found = [record for record in found if not _is_skipped(record.size, config.skip_image_resolution)]
            records += with_masks(subset, found, skip_unreadable=options.skip_bad_images)
        except NoImages as error:
            empty.append(error)
            continue
        except UserError as error:
            problems.append(error)
            is_complete = False
        kept.append(subset)
    config = replace(config, subsets=tuple(kept))
    if is_complete:  # otherwise it is unknown whether all images have legacy .npz latents
        records = settle_legacy_latents(config, records, problems)
        if any(record.legacy_npz for record in records):
            problems += legacy_npz_problems(config, options)
        problems += _skipped_problems(config, records, skipped)
    if config.subsets and all(subset.is_reg for subset in config.subsets):
        problems.append(
            UserError(
                f"{config.key_path} has regularisation images only", hint="add a subset without is_reg to train on"
            )
        )
    return _ScannedDataset(config, records, len(skipped), empty)


def _spell_folders_alike(scanned: list[_ScannedDataset]) -> None:
    """Gives the images of one folder, such as images and ./images, the same paths, by which their caches are known."""
    if sum(len(each.config.subsets) for each in scanned) < 2:
        return
    real = RealPaths()
    first: dict[str, str] = {}  # real path -> as it is spelled first
    spelled: dict[str, str] = {}
    for each in scanned:
        for record in each.records:
            folder, separator, name = record.path.rpartition(os.sep)
            if folder not in spelled:
                spelled[folder] = first.setdefault(real.folder(folder + separator), folder)
            if spelled[folder] != folder:
                record.path = os.path.join(spelled[folder], name)


def _is_skipped(size: Size, largest: Size) -> bool:
    """Whether an image is not larger than `skip_image_resolution`, by area, as for buckets."""
    return size[0] * size[1] <= largest[0] * largest[1]


def _skipped_problems(
    config: DatasetConfig, records: list[ImageRecord], skipped: list[ImageRecord]
) -> Iterator[UserError]:
    num_train = sum(not record.is_reg for record in skipped)
    if num_train and all(record.is_reg for record in records) and config.skip_image_resolution is not None:
        width, height = config.skip_image_resolution
        key = f"--skip_image_resolution {width},{height}"
        if not config.key_path.startswith("--"):
            key = f"skip_image_resolution [{width}, {height}]"
        yield UserError(
            f"{config.key_path}: {key} skips all images: none of {num_train} is larger, by area",
            hint="lower skip_image_resolution, or remove it or the dataset",
        )


def _skip_empty(scanned: list[_ScannedDataset], problems: list[UserError]) -> list[_ScannedDataset]:
    """The datasets with images. A subset without images is a warning, or an error if no other subset has some."""
    empty = [error for each in scanned for error in each.empty]
    left = [each for each in scanned if each.config.subsets]
    if not left:
        problems += empty
    for error in empty if left else ():
        logger.warning("%s, and is skipped: %s", error.message, error.hint)
    return left


def _warn_missing_faces(config: DatasetConfig, records: list[ImageRecord]) -> None:
    """`face_crop_aug_range` has no effect on images whose file names do not give a face."""
    without: dict[int, list[str]] = {}
    for record in records:
        if config.subsets[record.subset_index].face_crop_aug_range is not None:
            found = split_face_name(os.path.splitext(os.path.basename(record.path))[0])
            if found is None or not found[1].is_in(record.size):
                without.setdefault(record.subset_index, []).append(record.key)
    for index, keys in without.items():
        logger.warning(
            "%s: face_crop_aug_range: no face in the names of %s (..._<x>_<y>_<width>_<height>),"
            " which are cropped as usual: %s",
            config.subsets[index].key_path, plural(len(keys), "image"), listed(keys, _MAX_NAMES_IN_WARNING),
        )  # fmt: skip


def _warn_split_weights(config: DatasetConfig, records: list[ImageRecord]) -> None:
    """Weighted brackets around several tags, which are shuffled or dropped one by one."""
    split: dict[int, list[str]] = {}
    for record in records:
        subset = config.subsets[record.subset_index]
        if splits_tags(subset) and splits_weights(record.caption, subset.caption_separator):
            split.setdefault(record.subset_index, []).append(record.key)
    for index, keys in split.items():
        logger.warning(
            "%s: the tags of %s are split within weighted brackets, such as (a%s b:1.2), which breaks the"
            " weights: %s; weight each tag alone, or do not shuffle or drop tags", config.subsets[index].key_path,
            plural(len(keys), "image"), config.subsets[index].caption_separator, listed(keys, _MAX_NAMES_IN_WARNING),
        )  # fmt: skip


def _size_problems(config: DatasetConfig, records: list[ImageRecord]) -> Iterator[UserError]:
    """Datasets with too many items, and images whose resized version would fill the memory."""
    num_items = sum(record.num_repeats for record in records)
    if num_items > _MAX_ITEMS:
        most = max(config.subsets, key=lambda subset: subset.num_repeats)
        yield UserError(
            f"{config.key_path} has {num_items} items per epoch (images times repeats): more than {_MAX_ITEMS}",
            hint=f"lower num_repeats {most.num_repeats} of {most.source_name}",
        )
    if any(config.bucket_settings.problems("")):
        return  # reported already, and there are no buckets to assign images to
    chooser = BucketChooser(config.bucket_settings)
    for record in records:
        if record.legacy_npz is not None:
            continue  # it is not resized
        width, height = chooser.assign(record.size).resized
        if width * height > _MAX_RESIZED_PIXELS:
            yield UserError(
                f"image {record.path} has too extreme an aspect ratio: {size_text(record.size)}",
                hint="crop it, or remove it from the folder",
            )
