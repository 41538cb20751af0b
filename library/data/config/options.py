"""Options of the training data: images, buckets, captions, augmentations, caching, dataloader workers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from library.cli.errors import UserError, nearest_name
from library.cli.options import FREE_TEXT, option, option_fields, whole_number


def parse_resolution(value: Any) -> tuple[int, int]:
    """A size in pixels from 512, 512.0, "512", "512,768", [512, 768] or ["512", "768"].

    Raises `ValueError` with what was expected.
    """
    expected = ValueError("one or two sizes in pixels, such as 512 or 512,768 (width, height)")
    parts = list(value) if isinstance(value, (list, tuple)) else [value]
    if len(parts) == 1 and isinstance(parts[0], str):
        parts = parts[0].split(",")
    try:
        sides = [whole_number(part) for part in parts]
    except ValueError:
        raise expected from None
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise expected
    return sides[0], sides[-1]


def parse_caption_extension(value: Any) -> str:
    """A file extension such as ".txt", given with its dot or without. Raises `ValueError` with what was expected."""
    if not isinstance(value, str) or not value.strip("."):
        raise ValueError("a file extension, such as .txt")
    return value if value.startswith(".") else f".{value}"


def parse_separator(value: Any) -> str:
    """A separator of tags. Raises `ValueError` with what was expected."""
    if not isinstance(value, str) or not value:
        raise ValueError("a non-empty text")
    return value


def parse_rate(value: Any) -> float:
    """A probability. Raises `ValueError` with what was expected."""
    expected = ValueError("a number from 0 to 1")
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise expected from None
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
        raise expected
    return float(value)


def parse_face_range(value: Any) -> tuple[float, float]:
    """Smallest and largest crop in face sizes, from "2.0,4.0" or [2.0, 4.0]. Raises `ValueError`."""
    expected = ValueError("two numbers, the smaller first, such as 2.0,4.0")
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or len(parts) != 2 or any(isinstance(part, bool) for part in parts):
        raise expected
    try:
        smallest, largest = (float(part) for part in parts)
    except (TypeError, ValueError, OverflowError):
        raise expected from None
    if not 0 < smallest <= largest < float("inf"):
        raise expected
    return smallest, largest


def parse_path(value: Any) -> str:
    """The path of a file or folder. Raises `ValueError` with what was expected."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("a path")
    return value


def parse_custom_attributes(value: Any) -> dict[str, Any]:
    """Any table that JSON can hold, dates as texts. Raises `ValueError` with what was expected."""
    if not isinstance(value, dict):
        raise ValueError("a table, such as {artist = 'me'}")
    try:
        return json.loads(json.dumps(value, default=str))
    except RecursionError:
        raise ValueError("a table with fewer nested levels") from None


def parse_shards(value: Any) -> tuple[str, ...]:
    """Paths, patterns or URLs of tar shards: a text, or a list of texts. Raises `ValueError`."""
    parts = list(value) if isinstance(value, (list, tuple)) else [value]
    if not parts or not all(isinstance(part, str) and part and "\0" not in part for part in parts):
        raise ValueError('a path such as "data/{000..099}.tar", or a list of paths')
    return tuple(parts)


_MOST = 10**9  # a typing mistake: larger than any size or count

INTERPOLATIONS = ("lanczos", "nearest", "bilinear", "linear", "bicubic", "cubic", "area", "box", "jpeg_scaled")


_OWN_SUBSETS = "a --dataset_config takes both, as subsets"
# what to do instead of using an option with `--shards`
_BOTH = {
    "train_data_dir": _OWN_SUBSETS,
    "in_json": _OWN_SUBSETS,
    "conditioning_data_dir": "only folders of images can have mask images; --alpha_mask works with shards",
}


@dataclass(frozen=True)
class DatasetOptions:
    """Training images, captions and augmentations. Most are defaults of keys of the dataset TOML."""

    GROUP: ClassVar[str] = "Dataset"

    dataset_config: str | None = option(
        help="TOML or JSON file that describes the datasets", parse=parse_path, metavar="FILE"
    )
    train_data_dir: str | None = option(
        help="folder of training images in subfolders <repeats>_<class tokens>; with --in_json, folder of the images",
        parse=parse_path,
        metavar="FOLDER",
    )
    in_json: str | None = option(
        help="metadata JSON of the images in --train_data_dir, as written by the scripts in finetune/",
        parse=parse_path,
        metavar="FILE",
    )
    shards: tuple[str, ...] = option(
        (),
        help="tar shards of images and captions (WebDataset) instead of --train_data_dir: data/{000..099}.tar, a "
        "glob, a folder of .tar files, URLs",
        parse=parse_shards,
        metavar="PATH",
    )
    shard_cache_dir: str | None = option(
        help="folder for indexes of shards and for what is cached of their images; default: beside each shard",
        parse=parse_path,
        toml_level="subset",
        metavar="FOLDER",
        on_resume="unimportant",
    )
    dataset_repeats: int = option(
        1,
        help="repeats: how many times each image of --in_json or --shards is used per epoch",
        minimum=1,
        maximum=_MOST,
        toml_level="subset",
        toml_key="num_repeats",
    )
    reg_data_dir: str | None = option(
        help="folder of regularisation images (prior preservation), in subfolders <repeats>_<class tokens>",
        parse=parse_path,
        metavar="FOLDER",
    )
    conditioning_data_dir: str | None = option(
        help="folder of mask images with the names of the images in --train_data_dir, or of subfolders of mask images "
        "named as those there: white areas are trained, black ones are not",
        parse=parse_path,
        metavar="FOLDER",
    )
    dataset_class: str | None = option(
        help="custom dataset class, as in other trainers",
        inert="no effect: data come from --train_data_dir, --in_json or --dataset_config",
        metavar="NAME",
    )
    resolution: tuple[int, int] | None = option(
        help="training resolution in pixels: 512, or width and height as 512,768",
        parse=parse_resolution,
        toml_level="dataset",
        metavar="SIZE",
    )
    train_batch_size: int = option(
        1, help="batch size on each device", minimum=1, maximum=_MOST, toml_level="dataset", toml_key="batch_size"
    )
    enable_bucket: bool = option(
        False,
        help="aspect-ratio bucketing: train at several aspect ratios of the same area, which crops less",
        toml_level="dataset",
    )
    min_bucket_reso: int = option(256, help="shortest side of a bucket", minimum=1, maximum=_MOST, toml_level="dataset")
    max_bucket_reso: int = option(1024, help="longest side of a bucket", minimum=1, maximum=_MOST, toml_level="dataset")
    bucket_reso_steps: int = option(
        64,
        help="step of bucket sizes: the sides of buckets are multiples of this",
        minimum=1,
        maximum=_MOST,
        toml_level="dataset",
    )
    bucket_no_upscale: bool = option(
        False, help="never upscale images: make buckets from the images' own sizes", toml_level="dataset"
    )
    skip_image_resolution: tuple[int, int] | None = option(
        help="skip images that are not larger than this, by area (width x height in pixels): 768, or 768,512; for one "
        "folder that is used at several resolutions",
        parse=parse_resolution,
        toml_level="dataset",
        metavar="SIZE",
    )
    caption_extension: str = option(
        ".caption",
        help="file extension of the caption files beside the images",
        aliases=("caption_extention",),
        parse=parse_caption_extension,
        toml_level="subset",
        metavar="ENDING",
    )
    shuffle_caption: bool = option(False, help="shuffle the tags of captions each time", toml_level="subset")
    caption_separator: str = option(
        ",", help="separator of the tags in a caption", parse=parse_separator, toml_level="subset"
    )
    keep_tokens: int = option(
        0,
        help="keep the first N tags of a caption in place when tags are shuffled or dropped",
        minimum=0,
        maximum=_MOST,
        toml_level="subset",
    )
    keep_tokens_separator: str = option(
        "", help="separator in a caption, such as |||: the tags before it stay in place", toml_level="subset"
    )
    secondary_separator: str | None = option(
        help="second separator, such as ;;;, between tags that are shuffled and dropped together",
        parse=parse_separator,
        toml_level="subset",
    )
    enable_wildcard: bool = option(
        False,
        help="wildcards: draw one line of a caption file, and one text of each {a|b}, each time",
        toml_level="subset",
    )
    caption_prefix: str | None = option(help="text added before each caption", toml_level="subset", metavar=FREE_TEXT)
    caption_suffix: str | None = option(help="text added after each caption", toml_level="subset", metavar=FREE_TEXT)
    caption_dropout_rate: float = option(
        0.0,
        help="caption dropout: probability that a caption is replaced by an empty one",
        parse=parse_rate,
        toml_level="subset",
    )
    caption_dropout_every_n_epochs: int = option(
        0, help="drop all captions every N-th epoch (0: never)", minimum=0, maximum=_MOST, toml_level="subset"
    )
    caption_tag_dropout_rate: float = option(
        0.0, help="tag dropout: probability that a tag is dropped from a caption", parse=parse_rate, toml_level="subset"
    )
    token_warmup_min: int = option(
        1,
        help="token warm-up: number of tags of a caption in the first step",
        minimum=0,
        maximum=_MOST,
        toml_level="subset",
    )
    token_warmup_step: float = option(
        0.0,
        help="token warm-up: step from which captions have all tags; below 1: a fraction of all steps; 0: no warm-up",
        minimum=0,
        toml_level="subset",
    )
    color_aug: bool = option(
        False, help="colour augmentation: a small random shift of hue or gamma", toml_level="subset"
    )
    flip_aug: bool = option(
        False, help="flip augmentation: flip images horizontally with probability 0.5", toml_level="subset"
    )
    face_crop_aug_range: tuple[float, float] | None = option(
        help="crop around the face given in file names (..._<x>_<y>_<width>_<height>): "
        "smallest and largest side of the crop, in multiples of the face size",
        parse=parse_face_range,
        toml_level="subset",
        metavar="MIN,MAX",
    )
    random_crop: bool = option(False, help="random crop instead of a centre crop", toml_level="subset")
    resize_interpolation: str | None = option(
        help="interpolation for resizing images; default: area when downscaling, lanczos when upscaling; "
        "jpeg_scaled: as the default, of JPEG files decoded at 1/2, 1/4 or 1/8 of their size, which is faster",
        choices=INTERPOLATIONS,
        toml_level="subset",
    )
    alpha_mask: bool = option(False, help="use the alpha channel of images as the loss mask", toml_level="subset")
    cache_info: bool = option(
        False,
        help="cache image sizes and captions in a file in the folder, for a faster next start",
        toml_level="subset",
    )
    validation_split: float = option(
        0.0, help="fraction of the images held out of training for the validation loss",
        parse=parse_rate, toml_level="subset",
    )  # fmt: skip
    validation_seed: int = option(
        0, help="seed that selects the held-out images; independent of --seed", minimum=0, toml_level="subset"
    )
    skip_bad_images: bool = option(False, help="skip unreadable images instead of stopping with an error")

    def check(self) -> Iterator[UserError]:
        if self.dataset_config is not None:
            return
        if self.train_data_dir is None and self.in_json is None and not self.shards:
            hint = "give --dataset_config FILE, --train_data_dir FOLDER or --shards FILE"
            yield UserError("no training data is given", hint)
        for name in ("train_data_dir", "in_json", "conditioning_data_dir") if self.shards else ():
            if getattr(self, name) is not None:
                yield UserError(f"--shards cannot be used with --{name}", hint=f"remove one of them; {_BOTH[name]}")
        if self.in_json is None and self.conditioning_data_dir is not None and self.alpha_mask:
            yield UserError(
                "--conditioning_data_dir cannot be used with --alpha_mask: both are masks of the loss",
                hint="remove one of the two",
            )


def flag_values(options: DatasetOptions, level: str) -> dict[str, Any]:
    """The values of the flags of a level ("dataset" or "subset"), by the names of their TOML keys."""
    return {
        field.spec.toml_key or field.name: getattr(options, field.name)
        for field in option_fields(DatasetOptions)
        if field.spec.toml_level == level
    }


MASK_SHAPES = ("box", "ellipse", "polygon", "stroke", "cloud")  # that are drawn for inpainting, beside the full image
_FULL = 0.25  # as the published models were trained


@dataclass(frozen=True)
class InpaintingOptions:
    """Inpainting: what of each image is to be drawn."""

    GROUP: ClassVar[str] = "Inpainting"

    train_inpainting: bool = option(
        False,
        help="train an inpainting model, whose U-Net takes a mask and the masked image; a model that is none is widened"
        " where the whole model is trained (inpainting models are trained so without this flag)",
    )
    inpaint_full_rate: float = option(
        _FULL,
        help="inpainting: probability that the whole image is to be drawn, where its mask is drawn at random",
        parse=parse_rate,
    )
    inpaint_mask_shares: tuple[str, ...] = option(
        (),
        help=f"inpainting: how often the other masks are drawn ({', '.join(MASK_SHAPES)}), as in box=2 stroke=1; those"
        " that are not named are not drawn (default: all alike)",
        metavar="SHAPE=SHARE",
    )

    def check(self) -> Iterator[UserError]:
        try:
            _ = self.mask_shares
        except UserError as error:
            yield error

    @property
    def mask_shares(self) -> dict[str, float]:
        """The share of each kind of mask, which add up to 1. Raises `UserError` for ones that cannot be read."""
        flag, shares = "--inpaint_mask_shares", {}
        pairs = [pair for text in self.inpaint_mask_shares for pair in text.replace(",", " ").split()]
        for name, _, text in (pair.partition("=") for pair in pairs):
            if name not in MASK_SHAPES:
                meant = nearest_name(name, MASK_SHAPES)
                hint = f"did you mean {meant}?" if meant else f"known are {', '.join(MASK_SHAPES)}"
                raise UserError(f"{flag}: {name} is not a kind of mask", hint)
            try:
                shares[name] = float(text)
            except ValueError:
                shares[name] = -1.0
            if not 0 <= shares[name] < math.inf:
                raise UserError(f"{flag} {name}={text}: {text!r} is not a share", f"write {name}=1")
        total = sum(shares.values())
        if pairs and not total:
            raise UserError(f"{flag}: all shares are 0", "give one of them a share, or --inpaint_full_rate 1")
        relative = {name: share / total for name, share in shares.items()} or dict.fromkeys(MASK_SHAPES, 1 / 5)
        rest = 1 - self.inpaint_full_rate
        return {"full": self.inpaint_full_rate, **{name: share * rest for name, share in relative.items()}}

    @property
    def shapes_masks(self) -> bool:
        """Whether options say how masks are drawn."""
        return bool(self.inpaint_mask_shares) or self.inpaint_full_rate != _FULL


@dataclass(frozen=True)
class CachingOptions:
    """Caching of latents and text encoder outputs, and dataloader workers."""

    GROUP: ClassVar[str] = "Caching and data loading"

    cache_latents: bool = option(
        False, help="encode each image to latents once, before training, and keep them in memory"
    )
    cache_latents_to_disk: bool = option(
        False, help="cache latents in files beside the images; implies --cache_latents"
    )
    skip_cache_check: bool = option(
        False,
        help="trust cached latents by their file names without checking what they were made from, for a faster start",
    )
    cache_text_encoder_outputs: bool = option(
        False, help="encode each caption once, before training; needs a frozen text encoder and fixed captions"
    )
    cache_text_encoder_outputs_to_disk: bool = option(
        False, help="cache text encoder outputs in files beside the images; implies --cache_text_encoder_outputs"
    )
    vae_batch_size: int = option(1, help="VAE batch size: images encoded to latents at once", minimum=1, off=(0,))
    max_data_loader_n_workers: int = option(
        8,
        help="dataloader workers: processes that load images, at most one per CPU core; 0: load in the main process",
        minimum=0,
    )
    persistent_data_loader_workers: bool = option(False, help="keep dataloader workers alive between epochs")

    @property
    def caches_latents(self) -> bool:
        """Whether latents are cached, in memory or on disk."""
        return self.cache_latents or self.cache_latents_to_disk

    @property
    def caches_text_encoder_outputs(self) -> bool:
        """Whether encoded captions are cached, in memory or on disk."""
        return self.cache_text_encoder_outputs or self.cache_text_encoder_outputs_to_disk
