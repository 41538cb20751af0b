"""The records that pass from the data room to the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Size = tuple[int, int]  # (width, height)


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One picture as found by a source. Sizes are those after EXIF orientation."""

    key: str  # path below the subset's folder, with "/": its identity for randomness and caches
    path: str
    size: Size
    mtime_ns: int
    caption: str
    num_repeats: int
    subset_index: int
    is_reg: bool


@dataclass(frozen=True, slots=True)
class Placement:
    """How a picture becomes a training image: resized, then the window `crop` (left, top) of bucket size."""

    bucket: Size
    resized: Size
    crop: tuple[int, int]


@dataclass(frozen=True, slots=True)
class LatentKey:
    """What one latent is made from. Its random sample is keyed by this and nothing else."""

    path: str
    image_key: str
    image_size: Size
    mtime_ns: int
    placement: Placement
    flipped: bool


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One entry of an epoch's plan: the items of one bucket of one dataset that are computed together."""

    epoch: int
    index: int  # position in the epoch's plan
    dataset_index: int
    item_indices: tuple[int, ...]  # into the dataset's items, repeats included
    first_position: int  # position of its first item in the plan, counted in items


@dataclass
class Batch:
    """What the loop learns from in one micro-batch of B pictures."""

    micro_batch: MicroBatch
    captions: list[str]
    latent_keys: list[LatentKey]
    loss_weights: torch.Tensor  # (B,)
    pixels: torch.Tensor | None = None  # (B, 3, H, W) in [-1, 1], where latents are not cached
    latents: torch.Tensor | None = None  # (B, 4, H/8, W/8) unscaled, where they are cached
