"""What a training run learns from, as its user described it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from library.data.buckets import BucketSettings
from library.data.records import Size

Source = Literal["metadata", "folder"]


@dataclass(frozen=True)
class SubsetConfig:
    """One folder of images, or one metadata file, and how its images and captions are used."""

    key_path: str  # where the user described it: "datasets[0].subsets[1]" or "--train_data_dir"
    image_dir: str | None = None  # None with a metadata file whose keys are full paths
    metadata_file: str | None = None
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
    conditioning_data_dir: str | None = None  # of mask images
    cache_info: bool = False
    validation_split: float = 0.0
    validation_seed: int = 0
    custom_attributes: dict[str, Any] | None = None
    caption_templates: tuple[str, ...] = ()  # in place of the images' own; no key, the method says so

    @property
    def source(self) -> Source:
        """What describes its images: a metadata file, or the folder they lie in."""
        return "folder" if self.metadata_file is None else "metadata"

    @property
    def folder_name(self) -> str:
        """The last part of `image_dir`, or of the metadata file, as metadata names the subset."""
        path = Path(self.metadata_file or self.image_dir or "")
        return path.name or path.resolve().name

    @property
    def random_caption_options(self) -> list[str]:
        """The options that make captions differ from time to time, other than those that leave them out."""
        names = ("shuffle_caption", "enable_wildcard", "caption_tag_dropout_rate", "token_warmup_step")
        return [name for name in names if getattr(self, name)]

    @property
    def has_masks(self) -> bool:
        """Whether something weighs the loss of its images, place by place."""
        return self.alpha_mask or self.conditioning_data_dir is not None

    @property
    def has_random_placement(self) -> bool:
        """Whether its images are cropped differently each time."""
        return self.random_crop or self.face_crop_aug_range is not None


@dataclass(frozen=True)
class DatasetConfig:
    """Subsets that share sizes and a batch size."""

    key_path: str
    resolution: Size
    batch_size: int = 1
    enable_bucket: bool = False
    min_bucket_reso: int = 256
    max_bucket_reso: int = 1024
    bucket_reso_steps: int = 64
    bucket_no_upscale: bool = False
    # images of at most this area are left out; what it does shows in the records, so that it is no part of the digest
    skip_image_resolution: Size | None = field(default=None, repr=False)
    subsets: tuple[SubsetConfig, ...] = ()

    @property
    def bucket_settings(self) -> BucketSettings:
        return BucketSettings(**{each.name: getattr(self, each.name) for each in fields(BucketSettings)})
