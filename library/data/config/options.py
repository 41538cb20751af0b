"""Options of the training data: what is learned from, at which size, with which captions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from library.cli.errors import UserError
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
    """An ending such as ".txt", given with its dot or without. Raises `ValueError` with what was expected."""
    if not isinstance(value, str) or not value.strip("."):
        raise ValueError("the ending of a file, such as .txt")
    return value if value.startswith(".") else f".{value}"


def parse_separator(value: Any) -> str:
    """The text between tags. Raises `ValueError` with what was expected."""
    if not isinstance(value, str) or not value:
        raise ValueError("a text that is not empty")
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
    """A table of anything that JSON can hold, dates as texts. Raises `ValueError` with what was expected."""
    if not isinstance(value, dict):
        raise ValueError("a table, such as {artist = 'me'}")
    try:
        return json.loads(json.dumps(value, default=str))
    except RecursionError:
        raise ValueError("a table that is nested less deeply") from None


_MOST = 10**9  # a slip of the keyboard: larger than any size or count

INTERPOLATIONS = ("lanczos", "nearest", "bilinear", "linear", "bicubic", "cubic", "area", "box")


@dataclass(frozen=True)
class DatasetOptions:
    """Where images and captions come from. Most are defaults of keys of the dataset TOML."""

    GROUP: ClassVar[str] = "Dataset"

    dataset_config: str | None = option(
        help="TOML or JSON file that describes the datasets", parse=parse_path, metavar="FILE"
    )
    train_data_dir: str | None = option(
        help="folder of folders <repeats>_<class tokens> with the training images; with --in_json the folder of the "
        "images themselves",
        parse=parse_path,
        metavar="FOLDER",
    )
    in_json: str | None = option(
        help="metadata file of the images in --train_data_dir, as the scripts in finetune/ write it",
        parse=parse_path,
        metavar="FILE",
    )
    dataset_repeats: int = option(
        1, help="times each image of --in_json is used in an epoch", minimum=1, maximum=_MOST, toml_level="subset",
        toml_key="num_repeats",
    )  # fmt: skip
    reg_data_dir: str | None = option(
        help="folder of folders <repeats>_<class tokens> with the regularisation images",
        parse=parse_path,
        metavar="FOLDER",
    )
    conditioning_data_dir: str | None = option(
        help="folder of the masks of the images in --train_data_dir, of the same names, or of folders of masks named "
        "as those there: what is white in a mask is learned, what is black is not",
        parse=parse_path,
        metavar="FOLDER",
    )
    dataset_class: str | None = option(
        help="a dataset class of one's own, as other trainers take it",
        inert="does nothing: data come from --train_data_dir, --in_json or --dataset_config",
        metavar="NAME",
    )
    resolution: tuple[int, int] | None = option(
        help="training size in pixels: 512, or width and height as 512,768",
        parse=parse_resolution,
        toml_level="dataset",
        metavar="SIZE",
    )
    train_batch_size: int = option(
        1, help="images in a batch", minimum=1, maximum=_MOST, toml_level="dataset", toml_key="batch_size"
    )
    enable_bucket: bool = option(
        False, help="train at several aspect ratios of the same area, cropping less", toml_level="dataset"
    )
    min_bucket_reso: int = option(256, help="shortest side of a bucket", minimum=1, maximum=_MOST, toml_level="dataset")
    max_bucket_reso: int = option(1024, help="longest side of a bucket", minimum=1, maximum=_MOST, toml_level="dataset")
    bucket_reso_steps: int = option(
        64, help="sides of buckets are multiples of this", minimum=1, maximum=_MOST, toml_level="dataset"
    )
    bucket_no_upscale: bool = option(
        False, help="make buckets from the images' own sizes instead of enlarging them", toml_level="dataset"
    )
    skip_image_resolution: tuple[int, int] | None = option(
        help="leave out images that are not larger than this, by area (width x height in pixels): 768, or 768,512; for "
        "one folder that is used at several resolutions",
        parse=parse_resolution,
        toml_level="dataset",
        metavar="SIZE",
    )
    caption_extension: str = option(
        ".caption",
        help="ending of the caption files beside the images",
        aliases=("caption_extention",),
        parse=parse_caption_extension,
        toml_level="subset",
        metavar="ENDING",
    )
    shuffle_caption: bool = option(False, help="shuffle the tags of a caption each time", toml_level="subset")
    caption_separator: str = option(
        ",", help="what stands between the tags of a caption", parse=parse_separator, toml_level="subset"
    )
    keep_tokens: int = option(
        0, help="tags at the start of a caption that shuffling leaves in place", minimum=0, maximum=_MOST,
        toml_level="subset",
    )  # fmt: skip
    keep_tokens_separator: str = option(
        "", help="text in a caption, such as |||, before which tags stay in place", toml_level="subset"
    )
    secondary_separator: str | None = option(
        help="what joins tags into one that is shuffled and dropped as a whole, such as ;;;",
        parse=parse_separator,
        toml_level="subset",
    )
    enable_wildcard: bool = option(
        False, help="draw one line of a caption file and one text of each {a|b} each time", toml_level="subset"
    )
    caption_prefix: str | None = option(
        help="text put in front of each caption", toml_level="subset", metavar=FREE_TEXT
    )
    caption_suffix: str | None = option(help="text put behind each caption", toml_level="subset", metavar=FREE_TEXT)
    caption_dropout_rate: float = option(
        0.0, help="share of the times that a caption is empty", parse=parse_rate, toml_level="subset"
    )
    caption_dropout_every_n_epochs: int = option(
        0, help="captions are empty in every so manyeth epoch; 0: never", minimum=0, maximum=_MOST, toml_level="subset"
    )
    caption_tag_dropout_rate: float = option(
        0.0, help="share of the times that a tag is left out", parse=parse_rate, toml_level="subset"
    )
    token_warmup_min: int = option(
        1, help="tags of a caption in the first step", minimum=0, maximum=_MOST, toml_level="subset"
    )
    token_warmup_step: float = option(
        0.0, help="step from which captions have all their tags; below 1: a share of all steps", minimum=0,
        toml_level="subset",
    )  # fmt: skip
    color_aug: bool = option(False, help="shift colours a little, differently each time", toml_level="subset")
    flip_aug: bool = option(False, help="mirror each image half of the times", toml_level="subset")
    face_crop_aug_range: tuple[float, float] | None = option(
        help="crop around the face that file names give (..._<x>_<y>_<width>_<height>): "
        "side of the crop in face sizes, smallest and largest",
        parse=parse_face_range,
        toml_level="subset",
        metavar="MIN,MAX",
    )
    random_crop: bool = option(False, help="crop at a random place instead of the middle", toml_level="subset")
    resize_interpolation: str | None = option(
        help="how images are resized; unless given, area for smaller and lanczos for larger",
        choices=INTERPOLATIONS,
        toml_level="subset",
    )
    alpha_mask: bool = option(False, help="use the transparency of images as the mask of the loss", toml_level="subset")
    cache_info: bool = option(
        False, help="keep sizes and captions in a file in the folder, for a quicker next start", toml_level="subset"
    )
    validation_split: float = option(
        0.0, help="share of the images that is held out of training, to measure the validation loss on",
        parse=parse_rate, toml_level="subset",
    )  # fmt: skip
    validation_seed: int = option(
        0, help="another seed holds out other images; --seed has no part in it", minimum=0, toml_level="subset"
    )
    skip_bad_images: bool = option(False, help="go on without images that cannot be read")

    def problems(self) -> Iterator[UserError]:
        if self.dataset_config is not None:
            return
        if self.train_data_dir is None and self.in_json is None:
            yield UserError("no training data is given", hint="give --dataset_config FILE or --train_data_dir FOLDER")
        elif self.resolution is None:
            yield UserError("--resolution is missing", hint="give the training size, such as --resolution 512")
        if self.in_json is None and self.conditioning_data_dir is not None and self.alpha_mask:
            yield UserError(
                "--conditioning_data_dir cannot be used with --alpha_mask: both say what counts in the loss",
                hint="leave one of the two out",
            )


def flag_values(options: DatasetOptions, level: str) -> dict[str, Any]:
    """What the flags say of the TOML keys of a level ("dataset" or "subset"), under the names of the keys."""
    return {
        field.spec.toml_key or field.name: getattr(options, field.name)
        for field in option_fields(DatasetOptions)
        if field.spec.toml_level == level
    }


@dataclass(frozen=True)
class CachingOptions:
    """How latents are kept, and how many processes load images."""

    GROUP: ClassVar[str] = "Latents and loading"

    cache_latents: bool = option(False, help="encode each image once, before training, and keep it in memory")
    cache_latents_to_disk: bool = option(
        False, help="keep the encoded images in files beside the images; implies --cache_latents"
    )
    skip_cache_check: bool = option(False, help="trust cached latents by the names of their files, for a quicker start")
    cache_text_encoder_outputs: bool = option(
        False, help="encode each caption once, before training, where the text encoder and captions stay as they are"
    )
    cache_text_encoder_outputs_to_disk: bool = option(
        False, help="keep encoded captions in files beside the images; implies --cache_text_encoder_outputs"
    )
    vae_batch_size: int = option(1, help="images encoded at once", minimum=1, off=(0,))
    max_data_loader_n_workers: int = option(
        8, help="processes that load images, at most one for each CPU core; 0 loads in the main process", minimum=0
    )
    persistent_data_loader_workers: bool = option(False, help="keep the loading processes from epoch to epoch")

    @property
    def caches_latents(self) -> bool:
        """Whether latents are cached, in memory or on disk."""
        return self.cache_latents or self.cache_latents_to_disk

    @property
    def caches_text_encoder_outputs(self) -> bool:
        """Whether encoded captions are cached, in memory or on disk."""
        return self.cache_text_encoder_outputs or self.cache_text_encoder_outputs_to_disk
