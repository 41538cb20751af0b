"""Options of the training data: what is learned from, at which size, with which captions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from library.cli.errors import UserError
from library.cli.options import option, option_fields


def parse_resolution(value: Any) -> tuple[int, int]:
    """A size in pixels from 512, "512", "512,768", [512, 768] or ["512", "768"].

    Raises `ValueError` with what was expected.
    """
    expected = ValueError("one or two sizes in pixels, such as 512 or 512,768 (width, height)")
    parts = list(value) if isinstance(value, (list, tuple)) else [value]
    if len(parts) == 1 and isinstance(parts[0], str):
        parts = parts[0].split(",")
    sides = [_side(part, expected) for part in parts]
    if len(sides) not in (1, 2):
        raise expected
    return sides[0], sides[-1]


def _side(part: Any, expected: ValueError) -> int:
    if isinstance(part, str):
        try:
            part = int(part)
        except ValueError:
            raise expected from None
    if not isinstance(part, int) or isinstance(part, bool) or part < 1:
        raise expected
    return part


def parse_caption_extension(value: Any) -> str:
    """An ending such as ".txt". Raises `ValueError` with what was expected."""
    if not isinstance(value, str) or not value.startswith(".") or len(value) < 2:
        raise ValueError("an ending that starts with a dot, such as .txt")
    return value


def parse_separator(value: Any) -> str:
    """The text between tags. Raises `ValueError` with what was expected."""
    if not isinstance(value, str) or not value:
        raise ValueError("a text that is not empty")
    return value


@dataclass(frozen=True)
class DatasetOptions:
    """Where pictures and captions come from. Most are defaults of keys of the dataset TOML."""

    GROUP: ClassVar[str] = "Dataset"

    dataset_config: str | None = option(help="TOML file that describes the datasets", metavar="FILE")
    train_data_dir: str | None = option(
        help="folder of folders <repeats>_<class tokens> with the training pictures", metavar="FOLDER"
    )
    reg_data_dir: str | None = option(
        help="folder of folders <repeats>_<class tokens> with the regularisation pictures", metavar="FOLDER"
    )
    resolution: tuple[int, int] | None = option(
        help="training size in pixels: 512, or width and height as 512,768",
        parse=parse_resolution,
        toml_level="dataset",
        metavar="SIZE",
    )
    train_batch_size: int = option(
        1, help="pictures in a batch", minimum=1, toml_level="dataset", toml_key="batch_size"
    )
    enable_bucket: bool = option(
        False, help="train at several aspect ratios of the same area, cropping less", toml_level="dataset"
    )
    min_bucket_reso: int = option(256, help="shortest side of a bucket", minimum=1, toml_level="dataset")
    max_bucket_reso: int = option(1024, help="longest side of a bucket", minimum=1, toml_level="dataset")
    bucket_reso_steps: int = option(64, help="sides of buckets are multiples of this", minimum=1, toml_level="dataset")
    bucket_no_upscale: bool = option(
        False, help="make buckets from the pictures' own sizes instead of enlarging them", toml_level="dataset"
    )
    caption_extension: str = option(
        ".caption",
        help="ending of the caption files beside the pictures",
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
        0, help="tags at the start of a caption that shuffling leaves in place", minimum=0, toml_level="subset"
    )
    flip_aug: bool = option(False, help="mirror each picture half of the times", toml_level="subset")

    def problems(self) -> Iterator[UserError]:
        if self.dataset_config is not None:
            return
        if self.train_data_dir is None:
            yield UserError("no training data is given", hint="give --dataset_config FILE or --train_data_dir FOLDER")
        elif self.resolution is None:
            yield UserError("--resolution is missing", hint="give the training size, such as --resolution 512")


def flag_values(options: DatasetOptions, level: str) -> dict[str, Any]:
    """What the flags say of the TOML keys of a level ("dataset" or "subset"), under the names of the keys."""
    return {
        field.spec.toml_key or field.name: getattr(options, field.name)
        for field in option_fields(DatasetOptions)
        if field.spec.toml_level == level
    }


@dataclass(frozen=True)
class CachingOptions:
    """How latents are kept, and how many processes load pictures."""

    GROUP: ClassVar[str] = "Latents and loading"

    cache_latents: bool = option(False, help="encode each picture once, before training, and keep it in memory")
    cache_latents_to_disk: bool = option(
        False, help="keep the encoded pictures in files beside the pictures; implies --cache_latents"
    )
    vae_batch_size: int = option(1, help="pictures encoded at once", minimum=1)
    max_data_loader_n_workers: int = option(
        8, help="processes that load pictures, at most one for each CPU core; 0 loads in the main process", minimum=0
    )
    persistent_data_loader_workers: bool = option(False, help="keep the loading processes from epoch to epoch")

    @property
    def caches_latents(self) -> bool:
        """Whether latents are cached, in memory or on disk."""
        return self.cache_latents or self.cache_latents_to_disk
