"""Options that rule each other out: each contradiction names both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from library.cli.errors import UserError, listed
from library.data.config.config import DatasetConfig, Source, SubsetConfig
from library.data.config.options import CachingOptions, DatasetOptions

_DIFFERENT_EACH_TIME = ("color_aug", "random_crop", "face_crop_aug_range")
_NEED_THE_IMAGE = (*_DIFFERENT_EACH_TIME, "alpha_mask")
_MAX_PLACES = 5

# of a description that is not of the kind a script takes: what it is, and what to do instead
_OTHER_SOURCES = {
    "metadata": (
        "a metadata file, and this script learns from folders of images",
        "train with fine_tune.py, or name the folder of the images alone (image_dir, --train_data_dir)",
    ),
    "folder": (
        "a folder of images, and this script learns from metadata files",
        "train with train_db.py, or name a metadata file too (metadata_file, --in_json)",
    ),
}


def source_problems(
    configs: Sequence[DatasetConfig], options: DatasetOptions, only: Source | None
) -> Iterator[UserError]:
    """`only`: the kind of description that is accepted; None for any. Other kinds are named, each at its place."""
    if only is None:
        return
    for other, (what, hint) in _OTHER_SOURCES.items():
        subsets = [subset for config in configs for subset in config.subsets if subset.source == other]
        if other != only and subsets:
            key = "metadata_file" if other == "metadata" else "image_dir"
            places = [f"{each.key_path}.{key}" if options.dataset_config else each.key_path for each in subsets]
            yield UserError(f"{listed(list(dict.fromkeys(places)), _MAX_PLACES)}: {what}", hint=hint)


def caching_problems(
    configs: Sequence[DatasetConfig], options: DatasetOptions, caching: CachingOptions
) -> Iterator[UserError]:
    """A cached latent is the same each time: augmentations of the pixels other than mirroring have no effect on it."""
    if not caching.caches_latents:
        return
    flag = "--cache_latents_to_disk" if caching.cache_latents_to_disk else "--cache_latents"
    subsets = [subset for config in configs for subset in config.subsets]
    for key in _DIFFERENT_EACH_TIME:
        where = _where_given(key, subsets, options)
        if where is not None:
            yield UserError(
                f"{flag} cannot be used with {where}",
                hint="leave one of them out: a cached latent is the same each time",
            )


def prepared_problems(config: DatasetConfig, options: DatasetOptions) -> Iterator[UserError]:
    """What a dataset whose latents were prepared before cannot have."""
    for key in _NEED_THE_IMAGE:
        where = _where_given(key, config.subsets, options)
        if where is not None:
            yield UserError(
                f"{config.key_path}: prepared latents (.npz beside the images) cannot be used with {where}",
                hint=f"leave {key} out, or move the .npz files away, so that the images are encoded anew",
            )


def _where_given(key: str, subsets: Sequence[SubsetConfig], options: DatasetOptions) -> str | None:
    """The flag or the key paths that switch `key` on; None where it is off."""
    given = [subset for subset in subsets if getattr(subset, key)]
    if not given:
        return None
    if getattr(options, key):
        return f"--{key}"
    return listed([f"{subset.key_path}.{key}" for subset in given], _MAX_PLACES)
