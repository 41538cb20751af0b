"""Validation rules of the data: options that cannot be combined. Each error names both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from library.cli.errors import UserError, listed
from library.data.config.config import DatasetConfig, Source, SubsetConfig
from library.data.config.options import CachingOptions, DatasetOptions
from library.data.storage import is_url

_RANDOM_PIXELS = ("color_aug", "random_crop", "face_crop_aug_range")
_NEED_PIXELS = (*_RANDOM_PIXELS, "alpha_mask")
_MAX_NAMES = 5

# a source of images that the script does not support: (what it is, hint)
_OTHER_SOURCES = {
    "metadata": (
        "a metadata file, but this script trains on folders of images",
        "train with fine_tune.py, or give only the folder of images (image_dir, --train_data_dir)",
    ),
    "folder": (
        "a folder of images, but this script trains on metadata files",
        "train with train_db.py, or give a metadata file too (metadata_file, --in_json)",
    ),
}


def source_problems(
    configs: Sequence[DatasetConfig], options: DatasetOptions, only: Source | None
) -> Iterator[UserError]:
    """Subsets whose images come from another source than `only`, the one that the script supports (None: any)."""
    if only is None:
        return
    for other, (what, hint) in _OTHER_SOURCES.items():
        subsets = [subset for config in configs for subset in config.subsets if subset.source == other]
        if other != only and subsets:
            key = "metadata_file" if other == "metadata" else "image_dir"
            key_paths = [f"{each.key_path}.{key}" if options.dataset_config else each.key_path for each in subsets]
            yield UserError(f"{listed(list(dict.fromkeys(key_paths)), _MAX_NAMES)}: {what}", hint=hint)


def caching_problems(
    configs: Sequence[DatasetConfig], options: DatasetOptions, caching: CachingOptions
) -> Iterator[UserError]:
    """What varies at random, and so cannot be used with what is cached and the same each time."""
    subsets = [subset for config in configs for subset in config.subsets]
    yield from _shard_problems(subsets, caching)
    if caching.caches_latents:
        yield from _latent_problems(subsets, options, caching)
    if caching.caches_text_encoder_outputs:
        yield from _caption_problems(subsets)


def _shard_problems(subsets: Sequence[SubsetConfig], caching: CachingOptions) -> Iterator[UserError]:
    """Shards behind a URL without a folder for what is cached of them."""
    names = [name for name in ("cache_latents_to_disk", "cache_text_encoder_outputs_to_disk") if getattr(caching, name)]
    remote = [each.key_path for each in subsets if each.shard_cache_dir is None and any(map(is_url, each.shards))]
    if names and remote:
        yield UserError(
            f"--{names[0]}: there is no folder for what is cached of the shards of {listed(remote, _MAX_NAMES)}",
            hint=f"give --shard_cache_dir, or cache in memory: --{names[0].removesuffix('_to_disk')}",
        )


def _latent_problems(
    subsets: Sequence[SubsetConfig], options: DatasetOptions, caching: CachingOptions
) -> Iterator[UserError]:
    """Augmentations other than flipping, of which both orientations are cached."""
    flag = "--cache_latents_to_disk" if caching.cache_latents_to_disk else "--cache_latents"
    for key in _RANDOM_PIXELS:
        where = _where_given(key, subsets, options)
        if where is not None:
            yield UserError(
                f"{flag} cannot be used with {where}",
                hint="remove one of them: a cached latent is the same each time",
            )


def _caption_problems(subsets: Sequence[SubsetConfig]) -> Iterator[UserError]:
    """Options that vary captions; caption dropout is none, as the empty caption is cached too."""
    flag = "--cache_text_encoder_outputs"
    for subset in subsets:
        keys = subset.random_caption_options
        if keys:
            yield UserError(
                f"{subset.key_path}: {' and '.join(keys)} with {flag}: cached outputs are of one fixed caption",
                hint=f"remove {flag}, or {'these' if len(keys) > 1 else keys[0]}",
            )


def legacy_npz_problems(config: DatasetConfig, options: DatasetOptions) -> Iterator[UserError]:
    """Augmentations that cannot be used with legacy .npz latents."""
    for key in _NEED_PIXELS:
        where = _where_given(key, config.subsets, options)
        if where is not None:
            yield UserError(
                f"{config.key_path}: legacy .npz latents (beside the images) cannot be used with {where}",
                hint=f"remove {key}, or move the .npz files away, so that the images are encoded again",
            )


def _where_given(key: str, subsets: Sequence[SubsetConfig], options: DatasetOptions) -> str | None:
    """The flag or the key paths that enable `key`; None where it is off."""
    given = [subset for subset in subsets if getattr(subset, key)]
    if not given:
        return None
    if getattr(options, key):
        return f"--{key}"
    return listed([f"{subset.key_path}.{key}" for subset in given], _MAX_NAMES)
