"""Metadata entries about the dataset in saved files, in the keys and formats that other programs read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from library.data.batches.plan import PlannedDataset, SubsetSummary, TrainingData
from library.data.config.options import DatasetOptions

# keys of each subset in `ss_datasets`, besides its number of images
_SUBSET_KEYS = (
    "num_repeats",
    "color_aug",
    "flip_aug",
    "face_crop_aug_range",
    "random_crop",
    "shuffle_caption",
    "keep_tokens",
    "keep_tokens_separator",
    "secondary_separator",
    "enable_wildcard",
    "caption_prefix",
    "caption_suffix",
    "caption_dropout_rate",
    "caption_dropout_every_n_epochs",
    "caption_tag_dropout_rate",
    "token_warmup_min",
    "token_warmup_step",
    "resize_interpolation",
    "alpha_mask",
)

# options in the metadata of all runs, and those that a dataset file can override
_FLAGS = (
    "caption_dropout_rate",
    "caption_dropout_every_n_epochs",
    "caption_tag_dropout_rate",
    "face_crop_aug_range",
    "resize_interpolation",
)
_FLAGS_WITHOUT_FILE = ("shuffle_caption", "keep_tokens", "flip_aug", "color_aug", "random_crop")


def dataset_entries(data: TrainingData, flags: DatasetOptions, group_size: int) -> dict[str, Any]:
    """The `ss_*` entries of the dataset; tables are not yet JSON text.

    With a dataset file, everything is in `ss_datasets`; with folders or a metadata file on the command line, each value
    has an entry. `group_size`: batches in an optimizer step, of all processes.
    """
    entries = {**_folders(data), **{f"ss_{name}": getattr(flags, name) for name in _FLAGS}}
    if flags.dataset_config is not None:
        return {**entries, "ss_datasets": [_dataset_entry(dataset) for dataset in data.datasets]}
    (dataset,) = data.datasets
    config = dataset.config
    return {
        **entries,
        "ss_resolution": config.resolution,
        "ss_batch_size_per_device": config.batch_size,
        "ss_total_batch_size": config.batch_size * group_size,
        "ss_enable_bucket": config.enable_bucket,
        "ss_bucket_no_upscale": config.bucket_no_upscale,
        "ss_min_bucket_reso": config.min_bucket_reso,
        "ss_max_bucket_reso": config.max_bucket_reso,
        "ss_bucket_info": _bucket_info(dataset),
        **{f"ss_{name}": getattr(flags, name) for name in _FLAGS_WITHOUT_FILE},
    }


def _folders(data: TrainingData) -> dict[str, Any]:
    """Images, repeats and tags by name of the folder or metadata file."""
    dirs: dict[str, Any] = {}
    reg_dirs: dict[str, Any] = {}
    tags: dict[str, dict[str, int]] = {}
    for dataset in data.datasets:
        summaries = dataset.subset_summaries
        for summary in summaries:
            target = reg_dirs if summary.config.is_reg else dirs
            target[summary.config.folder_name] = {
                "n_repeats": summary.config.num_repeats,
                "img_count": summary.img_count,
            }
        tags.update(_tag_frequency(summaries))  # a folder in two datasets is counted once
    return {"ss_dataset_dirs": dirs, "ss_reg_dataset_dirs": reg_dirs, "ss_tag_frequency": tags}


def _tag_frequency(summaries: Iterable[SubsetSummary]) -> dict[str, dict[str, int]]:
    """Tag counts by folder name; those of folders with the same name are summed."""
    counts: dict[str, Counter[str]] = {}
    for summary in summaries:
        counts.setdefault(summary.config.folder_name, Counter()).update(summary.tag_frequency)
    return {name: dict(count) for name, count in counts.items()}


def _dataset_entry(dataset: PlannedDataset) -> dict[str, Any]:
    config, summaries = dataset.config, dataset.subset_summaries
    return {
        "is_dreambooth": all(subset.source != "metadata" for subset in config.subsets),
        "batch_size_per_device": config.batch_size,
        "num_train_images": dataset.num_train_images,
        "num_reg_images": dataset.num_reg_images,
        "resolution": list(config.resolution),
        "skip_image_resolution": config.skip_image_resolution,
        "enable_bucket": config.enable_bucket,
        "min_bucket_reso": config.min_bucket_reso,
        "max_bucket_reso": config.max_bucket_reso,
        "tag_frequency": _tag_frequency(summaries),
        "bucket_info": _bucket_info(dataset),
        "resize_interpolation": _shared([subset.resize_interpolation for subset in config.subsets]),
        "subsets": [_subset_entry(summary) for summary in summaries],
    }


def _shared(values: list[Any]) -> Any:
    """The value that all have in common, or None."""
    return values[0] if all(value == values[0] for value in values) else None


def _subset_entry(summary: SubsetSummary) -> dict[str, Any]:
    config = summary.config
    entry = {"img_count": summary.img_count, **{key: getattr(config, key) for key in _SUBSET_KEYS}}
    if config.source == "metadata":
        entry["metadata_file"] = config.folder_name
    else:
        entry |= {"image_dir": config.folder_name, "class_tokens": config.class_tokens, "is_reg": config.is_reg}
    if config.custom_attributes is not None:
        entry["custom_attributes"] = config.custom_attributes
    return entry


def _bucket_info(dataset: PlannedDataset) -> dict[str, Any]:
    counts = dataset.bucket_counts.items()
    buckets = {str(index): {"resolution": list(size), "count": count} for index, (size, count) in enumerate(counts)}
    return {"buckets": buckets, "mean_img_ar_error": dataset.mean_aspect_error}
