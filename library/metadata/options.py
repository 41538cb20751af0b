"""Options of the scripts that write metadata files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from library.cli.errors import UserError
from library.cli.jobs.options import parse_device
from library.cli.options import option
from library.data.buckets import BucketSettings
from library.data.config.options import parse_caption_extension, parse_resolution
from library.models.families import encoder_problems

MODEL = "MODEL_NAME_OR_PATH"  # how the model is named in messages


@dataclass(frozen=True)
class MergeOptions:
    """Which images and caption files are merged into which metadata file."""

    GROUP: ClassVar[str] = "Merging"

    train_data_dir: str | None = option(
        help="folder of images with caption files beside them", positional=True, required=True, metavar="FOLDER"
    )
    out_json: str | None = option(
        help="metadata file to write; an existing one is read first and added to, unless --in_json is given",
        positional=True,
        required=True,
        metavar="FILE",
    )
    in_json: str | None = option(help="metadata file to read and add to, instead of OUT_JSON", metavar="FILE")
    caption_extension: str = option(
        ".caption",
        help="file extension of the caption files",
        aliases=("caption_extention",),
        parse=parse_caption_extension,
        metavar="ENDING",
    )
    full_path: bool = option(
        False, help="keys are paths of images, as TRAIN_DATA_DIR begins them, instead of their names without extension"
    )
    recursive: bool = option(False, help="images in subfolders too; needs --full_path")
    debug: bool = option(False, help="log each image with what is merged for it")

    @property
    def folder(self) -> str:
        assert self.train_data_dir is not None  # it is required
        return self.train_data_dir

    @property
    def target(self) -> str:
        assert self.out_json is not None  # it is required
        return self.out_json

    def check(self) -> Iterator[UserError]:
        if self.recursive and not self.full_path:
            yield UserError("--recursive needs --full_path", "add it: names alone do not say in which subfolder")
        yield from target_problems(self.out_json)


@dataclass(frozen=True)
class TagMergeOptions(MergeOptions):
    """The same for tag files."""

    caption_extension: str = option(
        ".txt",
        help="file extension of the tag files",
        aliases=("caption_extention",),
        parse=parse_caption_extension,
        metavar="ENDING",
    )


@dataclass(frozen=True)
class CleanOptions:
    """Which metadata file is cleaned, and how."""

    GROUP: ClassVar[str] = "Cleaning"

    in_json: str | None = option(help="metadata file to clean", positional=True, required=True, metavar="FILE")
    out_json: str | None = option(
        help="metadata file to write; may be the same", positional=True, required=True, metavar="FILE"
    )
    older_form: str | None = option(
        help="as third argument, in the older form FOLDER IN_JSON OUT_JSON, whose folder is not used",
        positional=True,
        metavar="FILE",
    )
    rules: str | None = option(
        help="TOML file with the rules of cleaning, instead of those in the script", metavar="FILE"
    )
    debug: bool = option(False, help="log each caption and each list of tags that changes")

    @property
    def source(self) -> str:
        path = self.in_json if self.older_form is None else self.out_json
        assert path is not None  # it is required
        return path

    @property
    def target(self) -> str:
        path = self.older_form or self.out_json
        assert path is not None  # it is required
        return path

    def check(self) -> Iterator[UserError]:
        yield from target_problems(self.older_form or self.out_json)


def _resolution_text(value: Any) -> str:
    """A size as text, such as 512,768. Raises `ValueError` with what was expected."""
    return "{},{}".format(*parse_resolution(value))


@dataclass(frozen=True)
class PrepareOptions:
    """Which images are encoded to latents, by which model, and in which buckets."""

    GROUP: ClassVar[str] = "Latents"

    train_data_dir: str | None = option(
        help="folder of the images of the metadata file", positional=True, required=True, metavar="FOLDER"
    )
    in_json: str | None = option(
        help="metadata file whose images are encoded", positional=True, required=True, metavar="FILE"
    )
    out_json: str | None = option(
        help="metadata file to write, with the train_resolution of each image; may be the same",
        positional=True,
        required=True,
        metavar="FILE",
    )
    model_name_or_path: str | None = option(
        help="model whose VAE encodes, or a VAE: a Diffusers folder, a .safetensors or .ckpt file, or a name on the"
        " Hugging Face Hub",
        positional=True,
        required=True,
        metavar="PATH",
    )
    v2: bool = option(False, help="the model is Stable Diffusion 2.x (its VAE is read in the same way)")
    batch_size: int = option(1, help="VAE batch size: images encoded at once", minimum=1)
    max_data_loader_n_workers: int | None = option(
        help="threads that decode images while the VAE encodes others (default: one per CPU core, at most 8)",
        minimum=0,
    )
    max_resolution: str = option(
        "512,512",
        help="training resolution in pixels, which gives the area of the buckets: 512, or width and height as 512,768",
        parse=_resolution_text,
        metavar="SIZE",
    )
    min_bucket_reso: int = option(256, help="shortest side of a bucket", minimum=1)
    max_bucket_reso: int = option(1024, help="longest side of a bucket", minimum=1)
    bucket_reso_steps: int = option(
        64, help="step of bucket sizes: the sides of buckets are multiples of this", minimum=1
    )
    bucket_no_upscale: bool = option(False, help="never upscale images: make buckets from the images' own sizes")
    mixed_precision: str = option("no", help="precision of the VAE", choices=("no", "fp16", "bf16"))
    full_path: bool = option(False, help="keys are paths of images; they are found without it too")
    flip_aug: bool = option(False, help="latents of the flipped images too, for training with --flip_aug")
    alpha_mask: str | None = option(
        help="the alpha channel of images as the loss mask",
        metavar="TEXT",
        refused=(
            "is not possible here: prepared latents hold no masks",
            "train with --alpha_mask and --cache_latents_to_disk instead of preparing latents",
        ),
    )
    skip_existing: bool = option(
        False, help="keep the latents that are there, of this size, image and VAE; otherwise all are made again"
    )
    recursive: bool = option(False, help="say which images in subfolders have no entry, too")
    device: str | None = option(
        help="cpu, cuda, a GPU such as cuda:1, or mps (default: a GPU where there is one)",
        parse=parse_device,
        metavar="DEVICE",
    )
    debug: bool = option(False, help="log the bucket of each image")

    @property
    def folder(self) -> str:
        assert self.train_data_dir is not None  # it is required
        return self.train_data_dir

    @property
    def source(self) -> str:
        assert self.in_json is not None  # it is required
        return self.in_json

    @property
    def target(self) -> str:
        assert self.out_json is not None  # it is required
        return self.out_json

    @property
    def model(self) -> str:
        assert self.model_name_or_path is not None  # it is required
        return self.model_name_or_path

    @property
    def bucket_settings(self) -> BucketSettings:
        return BucketSettings(
            parse_resolution(self.max_resolution),
            min_bucket_reso=self.min_bucket_reso,
            max_bucket_reso=self.max_bucket_reso,
            bucket_reso_steps=self.bucket_reso_steps,
            bucket_no_upscale=self.bucket_no_upscale,
        )

    def check(self) -> Iterator[UserError]:
        if self.model_name_or_path is not None:
            yield from encoder_problems(self.model_name_or_path, MODEL)
        yield from target_problems(self.out_json)
        for problem in self.bucket_settings.problems("--"):
            yield UserError(problem.message.replace("--resolution", "--max_resolution"), problem.hint)


def target_problems(path: str | None) -> Iterator[UserError]:
    """What is wrong with the path of a metadata file to write; None: it is missing, which is reported already."""
    if path is None:
        return
    if os.path.isdir(path):
        yield UserError(f"OUT_JSON {path} is a folder", "give the path of a .json file")
    elif not os.path.isdir(os.path.dirname(path) or "."):
        yield UserError(f"OUT_JSON {path}: its folder does not exist", "create the folder, or correct the path")
