"""The records that pass from the data room to the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch

Size = tuple[int, int]  # (width, height)


@dataclass(slots=True)  # never assigned to, but a frozen one takes four times as long to make
class ImageRecord:
    """One image as found by a source. Sizes are those after EXIF orientation."""

    key: str  # path below the subset's folder, with "/": its identity for randomness and caches
    path: str
    size: Size
    mtime_ns: int
    caption: str
    num_repeats: int
    subset_index: int
    is_reg: bool
    prepared: PreparedLatents | None = None
    mask_path: str | None = None  # an image that says what counts in the loss


@dataclass(frozen=True, slots=True)
class PreparedLatents:
    """Latents that were made before, by `prepare_buckets_latents.py`, and are used as they are."""

    path: str  # <stem>.npz
    bucket: Size


@dataclass(frozen=True, slots=True)
class Placement:
    """How an image becomes a training image: resized, then the window `crop` (left, top) of bucket size."""

    bucket: Size
    resized: Size
    crop: tuple[int, int]


@dataclass(frozen=True, slots=True)
class LatentKey:
    """What one latent is made from. Its random sample is keyed by the image and the placement alone."""

    path: str
    image_key: str
    image_size: Size
    mtime_ns: int
    placement: Placement
    flipped: bool
    interpolation: str | None = None  # `resize_interpolation`
    alpha_is_mask: bool = False  # transparency weighs the loss, instead of lying over white
    prepared_path: str | None = None  # of `PreparedLatents`: the image is not looked at
    mask_path: str | None = None  # of an image whose brightness weighs the loss; never part of a cached latent


@dataclass(frozen=True, slots=True)
class ColourShift:
    """What `color_aug` does to an image once."""

    hue: int = 0  # degrees / 2, as OpenCV counts them
    gamma: float = 1.0


@dataclass(frozen=True, slots=True)
class Item:
    """One use of an image, with everything random about it decided."""

    record_index: int
    caption: str
    latent_key: LatentKey
    colour: ColourShift | None
    is_reg: bool


@dataclass
class TrainedImage:
    """An image as it is trained."""

    pixels: np.ndarray  # float32 (3, H, W) in [-1, 1]
    mask: np.ndarray | None = None  # float32 (H/8, W/8) in [0, 1]: what each latent counts in the loss


@dataclass
class CachedLatents:
    """An image as the VAE sees it, with the mask of its loss."""

    latents: np.ndarray  # float32 (C, H/8, W/8), unscaled
    mask: np.ndarray | None = None  # float32 (H/8, W/8) in [0, 1]


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One entry of an epoch's plan: the items of one bucket of one dataset that are computed together."""

    epoch: int
    index: int  # position in the epoch's plan
    dataset_index: int
    item_indices: tuple[int, ...]  # into the dataset's items, repeats included
    first_position: int  # position of its first item in the plan, counted in items


@dataclass(frozen=True)
class StepCounter:
    """To which optimizer step a micro-batch belongs."""

    group_size: int  # micro-batches in a step
    steps_per_epoch: int
    num_steps: int  # of the whole run

    def step_of(self, micro_batch: MicroBatch) -> int:
        """Steps done before the one of this micro-batch."""
        return micro_batch.epoch * self.steps_per_epoch + micro_batch.index // self.group_size


@dataclass
class Batch:
    """What the loop learns from in one micro-batch of B images."""

    micro_batch: MicroBatch
    captions: list[str]
    latent_keys: list[LatentKey]
    loss_weights: torch.Tensor  # (B,)
    pixels: torch.Tensor | None = None  # (B, 3, H, W) in [-1, 1], where latents are not cached
    latents: torch.Tensor | None = None  # (B, 4, H/8, W/8) unscaled, where they come from files
    masks: torch.Tensor | None = None  # (B, 1, H/8, W/8) in [0, 1], where an image has one; not with latents in memory
    skipped: tuple[str, ...] = ()  # what is wrong with images that others stand in for
