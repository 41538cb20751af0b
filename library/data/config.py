"""What a training run learns from, as its user described it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from library.data.buckets import BucketSettings
from library.data.records import Size


@dataclass(frozen=True)
class SubsetConfig:
    """One folder of pictures and how its pictures and captions are used."""

    place: str  # where the user described it: "datasets[0].subsets[1]" or "--train_data_dir"
    image_dir: str
    num_repeats: int = 1
    class_tokens: str | None = None
    is_reg: bool = False
    caption_extension: str = ".caption"
    shuffle_caption: bool = False
    caption_separator: str = ","
    keep_tokens: int = 0
    flip_aug: bool = False

    @property
    def folder_name(self) -> str:
        """The last part of `image_dir`, as metadata names the folder."""
        return Path(self.image_dir).name or Path(self.image_dir).resolve().name


@dataclass(frozen=True)
class DatasetConfig:
    """Subsets that share sizes and a batch size."""

    place: str
    resolution: Size
    batch_size: int = 1
    enable_bucket: bool = False
    min_bucket_reso: int = 256
    max_bucket_reso: int = 1024
    bucket_reso_steps: int = 64
    bucket_no_upscale: bool = False
    subsets: tuple[SubsetConfig, ...] = ()

    @property
    def bucket_settings(self) -> BucketSettings:
        return BucketSettings(**{field.name: getattr(self, field.name) for field in fields(BucketSettings)})
