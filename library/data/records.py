"""Records that the data package hands to others: images, placements in buckets, items, batches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    import numpy as np
    import torch

Size = tuple[int, int]  # (width, height)


def size_text(size: Size) -> str:
    """A size as logs and messages show it, such as 512x768."""
    return f"{size[0]}x{size[1]}"


@dataclass(frozen=True)
class LatentFormat:
    """What the data has to know of a model family before its model is loaded.

    `ending`: of cache files of latents. `granularity`: pixels that sides of training images are multiples of.
    `usual_resolution`: where the user gives none; None where one has to be given.
    """

    ending: str = "_sd.npz"
    granularity: int = 8
    usual_resolution: Size | None = None


@dataclass(slots=True)  # hardly ever assigned to, but a frozen one takes four times as long to make
class ImageRecord:
    """One image that a scan found. Sizes are those after EXIF orientation."""

    key: str  # path relative to the subset's folder, with "/": identifies it in seeds and caches
    path: str
    size: Size
    mtime_ns: int
    caption: str
    num_repeats: int
    subset_index: int
    is_reg: bool
    legacy_npz: LegacyNpz | None = None
    mask_path: str | None = None  # its mask image, which weights the loss
    num_bytes: int | None = None  # None: not known
    ctime_ns: int | None = None
    member: ShardMember | None = None  # where it lies in a shard; `path` is then no file, but <shard>::<member>


@dataclass(frozen=True, slots=True)
class Shard:
    """A tar file of images, as it was scanned."""

    path: str  # or its URL
    num_bytes: int
    mtime_ns: int  # 0 for a URL
    identity: str  # changes with its members
    cache_base: str | None  # its cache files are this and their endings; None where nothing can be written


@dataclass(frozen=True, slots=True)
class ShardMember:
    """Where the bytes of a file lie in a shard."""

    shard: Shard
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class LegacyNpz:
    """Legacy .npz latents, made by `prepare_buckets_latents.py` and used as they are."""

    path: str  # <stem>.npz
    bucket: Size


def flipped_npz_path(path: str) -> str:
    """The legacy .npz file of the flipped image, beside that of the image: <stem>_flip.npz."""
    return f"{path.removesuffix('.npz')}_flip.npz"


@dataclass(frozen=True, slots=True)
class Placement:
    """Resize and crop: an image is resized, then cropped to its bucket's size at `crop` (left, top)."""

    bucket: Size
    resized: Size
    crop: tuple[int, int]


@dataclass(slots=True, unsafe_hash=True)  # never assigned to, but a frozen one takes three times as long to make
class LatentKey:
    """What one latent is encoded from. The VAE's random sample is keyed by the image and the placement alone."""

    path: str
    image_key: str
    image_size: Size
    mtime_ns: int
    placement: Placement
    flipped: bool
    interpolation: str | None = None  # `resize_interpolation`
    alpha_is_mask: bool = False  # transparency weights the loss, instead of being blended with white
    legacy_npz_path: str | None = None  # of `LegacyNpz`: the image itself is not read
    mask_path: str | None = None  # of a mask image, which weights the loss; never part of a cached latent
    num_bytes: int | None = None  # None: not known
    ctime_ns: int | None = None
    cache_ending: str = LatentFormat.ending
    member: ShardMember | None = None  # as of `ImageRecord`
    masked_by: Literal["given", "drawn"] | None = None  # of a masked image: its own mask, or one drawn for each use

    @property
    def masked(self) -> LatentKey:
        """The key of the same image without what is to be drawn (inpainting), cached in a file of its own."""
        is_given = self.alpha_is_mask or self.mask_path is not None
        return replace(
            self,
            legacy_npz_path=None,
            cache_ending=f"{self.cache_ending.removesuffix('.npz')}_inpaint.npz",
            masked_by="given" if is_given else "drawn",
        )


@dataclass(frozen=True, slots=True)
class Framing:
    """How a trained image was cut out of its file: what families whose models are told so are conditioned on.

    `original`: the image's size. `crop`: pixels cut off on the left and at the top, after resizing, as the trained
    image shows it (mirrored where that is). `target`: the trained image's size.
    """

    original: Size
    crop: tuple[int, int]
    target: Size


def framing_of(key: LatentKey) -> Framing:
    placement = key.placement
    left, top = placement.crop
    if key.flipped:
        left = placement.resized[0] - placement.bucket[0] - left
    return Framing(key.image_size, (left, top), placement.bucket)


@dataclass(frozen=True, slots=True)
class ColourShift:
    """One colour augmentation (`color_aug`)."""

    hue: int = 0  # degrees / 2, as OpenCV counts them
    gamma: float = 1.0


@dataclass(frozen=True, slots=True)
class Item:
    """One use of an image in an epoch, with its random caption, flip, crop and colours drawn."""

    record_index: int
    caption: str
    latent_key: LatentKey
    colour: ColourShift | None
    is_reg: bool
    mask_seed: int = 0  # of the mask that is drawn for inpainting


@dataclass
class TrainedImage:
    """An image after resizing, cropping and augmentation."""

    pixels: np.ndarray  # float32 (3, H, W) in [-1, 1]
    # float32 (H/8, W/8) in [0, 1]: weight of the loss; of a masked image: 1 where it is to be drawn
    mask: np.ndarray | None = None


@dataclass
class CachedLatents:
    """The latents of an image, with the mask of its loss; of a masked image, with its mask."""

    latents: np.ndarray  # float32 (C, H/8, W/8), unscaled
    mask: np.ndarray | None = None  # float32 (H/8, W/8) in [0, 1]


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One batch of an epoch's plan: items of one bucket of one dataset, for one forward pass."""

    epoch: int
    index: int  # position in the epoch's plan
    dataset_index: int
    item_indices: tuple[int, ...]  # into the dataset's items, repeats included
    first_position: int  # position of its first item in the plan, counted in items


@dataclass(frozen=True)
class StepCounter:
    """Which optimizer step a micro-batch belongs to."""

    group_size: int  # micro-batches in an optimizer step
    steps_per_epoch: int
    num_steps: int  # of the whole run
    offset: int = 0  # steps made more than epochs of this length have, before a resume with other ones

    def step_of(self, micro_batch: MicroBatch) -> int:
        """Optimizer steps done before that of this micro-batch."""
        return self.offset + micro_batch.epoch * self.steps_per_epoch + micro_batch.index // self.group_size


@dataclass(kw_only=True)
class LatentInputs:
    """What the latents of B images come from."""

    latent_keys: list[LatentKey]
    pixels: torch.Tensor | None = None  # (B, 3, H, W) in [-1, 1], of those whose latents are not cached
    latents: torch.Tensor | None = None  # (B, 4, H/8, W/8) unscaled, where they come from files
    masks: torch.Tensor | None = None  # (B, 1, H/8, W/8) in [0, 1], where an image has one; not with latents in memory
    lost: tuple[int, ...] = ()  # images whose cached latents are not there any more; their pixels are, in order


@dataclass(kw_only=True)
class Batch(LatentInputs):
    """The data of one micro-batch of B images.

    `masked`: the images without what is to be drawn, for inpainting; its `masks`, 1 where that is, are of those images
    alone whose latents are not in memory.
    """

    SOURCES: ClassVar[str] = "images"

    micro_batch: MicroBatch
    captions: list[str]
    loss_weights: torch.Tensor  # (B,)
    masked: LatentInputs | None = None
    skipped: tuple[str, ...] = ()  # errors of unreadable images that others replace

    @property
    def num_images(self) -> int:
        return len(self.captions)

    @property
    def sources(self) -> list[str]:
        """The paths of the images."""
        return [key.path for key in self.latent_keys]
