"""A dataset as the model family needs it: sides of training images, the usual resolution, names of cache files."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

from library.cli.errors import UserError
from library.data.config.config import DatasetConfig
from library.data.config.options import DatasetOptions
from library.data.records import LatentFormat, size_text

logger = logging.getLogger(__name__)


def with_resolution(options: DatasetOptions, latents: LatentFormat) -> DatasetOptions:
    """The options with the family's usual resolution where the user gives none."""
    if options.resolution is not None or latents.usual_resolution is None:
        return options
    if options.dataset_config is None:
        logger.info("--resolution is not given: %s, as usual for this model", size_text(latents.usual_resolution))
    return replace(options, resolution=latents.usual_resolution)


def resolution_problems(options: DatasetOptions) -> Iterator[UserError]:
    """A missing resolution, where no dataset file can give it."""
    has_images = options.train_data_dir is not None or options.in_json is not None or bool(options.shards)
    if options.dataset_config is None and has_images and options.resolution is None:
        yield UserError("--resolution is missing", hint="give the training size, such as --resolution 512")


def fitted(config: DatasetConfig, latents: LatentFormat, problems: list[UserError]) -> DatasetConfig:
    """The dataset with buckets and cache files as the family needs them; adds what is wrong to `problems`."""
    prefix = "--" if config.key_path.startswith("--") else f"{config.key_path}."
    steps, granularity = config.bucket_reso_steps, latents.granularity
    if granularity == LatentFormat.granularity:
        pass  # checked with the other settings of buckets
    elif not config.enable_bucket and any(side % granularity for side in config.resolution):
        problems.append(
            UserError(
                f"{prefix}resolution {size_text(config.resolution)} is not a multiple of {granularity}",
                hint=f"this model needs sides that are multiples of {granularity}",
            )
        )
    elif config.enable_bucket and steps < granularity and granularity % steps == 0:
        logger.warning("%sbucket_reso_steps %d: using %d, which this model needs", prefix, steps, granularity)
        config = replace(config, bucket_reso_steps=granularity)
    elif config.enable_bucket and steps % granularity:
        problems.append(
            UserError(
                f"{prefix}bucket_reso_steps {steps} is not a multiple of {granularity}, which this model needs",
                hint=f"give 64 or {granularity}",
            )
        )
    if config.enable_bucket and not config.bucket_no_upscale and config.max_bucket_reso <= min(config.resolution):
        logger.warning(
            "%smax_bucket_reso %d at resolution %s: images that are not square are trained with less area than square"
            " ones; give %d for their full size",
            prefix, config.max_bucket_reso, size_text(config.resolution), 2 * config.max_bucket_reso,
        )  # fmt: skip
    return replace(config, cache_ending=latents.ending)
