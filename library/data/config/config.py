"""Datasets and subsets of a run, as described by the dataset file or the flags."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from library.data.buckets import BucketSettings
from library.data.records import LatentFormat, Size

Source = Literal["metadata", "folder", "shards"]


@dataclass(frozen=True)
class SubsetConfig:
    """A subset: a folder of images, a metadata file or tar shards, with its settings for captions and augmentations."""

    key_path: str  # its key in the dataset file, such as "datasets[0].subsets[1]", or a flag
    image_dir: str | None = None  # None with shards, and with a metadata file whose keys are full paths
    metadata_file: str | None = None
    shards: tuple[str, ...] = field(default=(), repr=False)  # tar files: paths, patterns, URLs, folders
    shard_cache_dir: str | None = field(default=None, repr=False)  # where their caches lie; None: beside each
    num_repeats: int = 1
    class_tokens: str | None = None
    is_reg: bool = False
    caption_extension: str = ".caption"
    shuffle_caption: bool = False
    caption_separator: str = ","
    keep_tokens: int = 0
    keep_tokens_separator: str = ""
    secondary_separator: str | None = None
    enable_wildcard: bool = False
    caption_prefix: str | None = None
    caption_suffix: str | None = None
    caption_dropout_rate: float = 0.0
    caption_dropout_every_n_epochs: int = 0
    caption_tag_dropout_rate: float = 0.0
    token_warmup_min: int = 1
    token_warmup_step: float = 0.0
    color_aug: bool = False
    flip_aug: bool = False
    face_crop_aug_range: tuple[float, float] | None = None
    random_crop: bool = False
    resize_interpolation: str | None = None
    alpha_mask: bool = False
    conditioning_data_dir: str | None = None  # folder of mask images
    cache_info: bool = False
    validation_split: float = 0.0
    validation_seed: int = 0
    custom_attributes: dict[str, Any] | None = None
    caption_templates: tuple[str, ...] = ()  # replace the images' captions; no key of the file, set by the method

    @property
    def source(self) -> Source:
        """What holds or describes its images."""
        if self.shards:
            return "shards"
        return "folder" if self.metadata_file is None else "metadata"

    @property
    def source_name(self) -> str:
        """The path of its metadata file or folder, or what its shards were given by."""
        return self.metadata_file or self.image_dir or ", ".join(self.shards) or self.key_path

    @property
    def folder_name(self) -> str:
        """The name of the folder, metadata file or shards, which identifies the subset in model metadata."""
        path = Path(self.metadata_file or self.image_dir or (self.shards[0] if self.shards else ""))
        return path.name or path.resolve().name

    @property
    def random_caption_options(self) -> list[str]:
        """The options that make captions random, other than those of caption dropout."""
        names = ("shuffle_caption", "enable_wildcard", "caption_tag_dropout_rate", "token_warmup_step")
        return [name for name in names if getattr(self, name)]

    @property
    def has_masks(self) -> bool:
        """Whether a mask weights the loss of its images."""
        return self.alpha_mask or self.conditioning_data_dir is not None

    @property
    def has_random_placement(self) -> bool:
        """Whether its images are cropped differently each time."""
        return self.random_crop or self.face_crop_aug_range is not None


@dataclass(frozen=True)
class DatasetConfig:
    """A dataset: subsets that share a resolution, buckets and a batch size."""

    key_path: str
    resolution: Size
    batch_size: int = 1
    enable_bucket: bool = False
    min_bucket_reso: int = 256
    max_bucket_reso: int = 1024
    bucket_reso_steps: int = 64
    bucket_no_upscale: bool = False
    # images of at most this area are skipped; not part of the digest, since the records show its effect
    skip_image_resolution: Size | None = field(default=None, repr=False)
    subsets: tuple[SubsetConfig, ...] = ()
    cache_ending: str = field(default=LatentFormat.ending, repr=False)  # of cache files of latents

    @property
    def bucket_settings(self) -> BucketSettings:
        return BucketSettings(**{each.name: getattr(self, each.name) for each in fields(BucketSettings)})
