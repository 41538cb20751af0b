"""Options of the scripts that write metadata files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from library.cli.errors import UserError
from library.cli.options import option
from library.data.config.options import parse_caption_extension


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


def target_problems(path: str | None) -> Iterator[UserError]:
    """What is wrong with the path of a metadata file to write; None: it is missing, which is reported already."""
    if path is None:
        return
    if os.path.isdir(path):
        yield UserError(f"OUT_JSON {path} is a folder", "give the path of a .json file")
    elif not os.path.isdir(os.path.dirname(path) or "."):
        yield UserError(f"OUT_JSON {path}: its folder does not exist", "create the folder, or correct the path")
