"""Options of the tagger: which model, which of its tags, and how they are written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from library.captioning.caption_files import extension_problems
from library.cli.errors import UserError
from library.cli.options import FREE_TEXT, option
from library.data.config.options import parse_caption_extension

DEFAULT_REPOSITORY = "SmilingWolf/wd-v1-4-convnext-tagger-v2"
OUTPUT_ENDINGS = (".json", ".jsonl")


def parse_replacements(value: Any) -> str:
    """`--tag_replacement` as it is given. Raises `ValueError` if it is not a list of pairs."""
    text = str(value)
    if any(len(pair) != 2 or not all(pair) for pair in replacement_pairs(text)):
        raise ValueError("pairs such as old1,new1;old2,new2, with \\ before a comma or semicolon that is part of a tag")
    return text


def replacement_pairs(text: str) -> list[list[str]]:
    """The tags of each pair in "old1,new1;old2,new2"; a backslash keeps what follows from separating."""
    return [
        [re.sub(r"\\(.)", r"\1", tag).strip() for tag in _split(pair, ",")]
        for pair in _split(text, ";")
        if pair.strip()
    ]


def _split(text: str, separator: str) -> list[str]:
    return re.split(rf"(?<!\\){separator}", text)


@dataclass(frozen=True)
class TaggerOptions:
    """The tagger's model."""

    GROUP: ClassVar[str] = "Model"

    repo_id: str = option(DEFAULT_REPOSITORY, help="tagger on the Hugging Face Hub", metavar="OWNER/NAME")
    model_dir: str = option(
        "wd14_tagger_model", help="folder that keeps downloaded taggers, or that has model.onnx and selected_tags.csv",
        metavar="FOLDER",
    )  # fmt: skip
    force_download: bool = option(False, help="download the tagger again")
    onnx: bool = option(False, help="accepted: taggers always run by onnxruntime")


@dataclass(frozen=True)
class TagOptions:
    """Which tags an image gets, and in which order."""

    GROUP: ClassVar[str] = "Tags"

    thresh: float = option(0.35, help="least probability of a tag", minimum=0, maximum=1)
    general_threshold: float | None = option(help="that of general tags (default: --thresh)", minimum=0, maximum=1)
    character_threshold: float | None = option(help="that of characters (default: --thresh)", minimum=0, maximum=1)
    meta_threshold: float | None = option(help="that of meta tags (default: --thresh)", minimum=0, maximum=1)
    model_threshold: float | None = option(help="that of model tags (default: --thresh)", minimum=0, maximum=1)
    copyright_threshold: float | None = option(help="that of copyrights (default: --thresh)", minimum=0, maximum=1)
    artist_threshold: float | None = option(help="that of artists (default: --thresh)", minimum=0, maximum=1)
    undesired_tags: str = option("", help="tags to leave out, separated by commas", metavar=FREE_TEXT)
    remove_underscore: bool = option(False, help="blanks in place of underscores, but for kaomoji such as ^_^")
    use_rating_tags: bool = option(False, help="add the most probable rating, as the first tag")
    use_rating_tags_as_last_tag: bool = option(False, help="add the most probable rating, as the last tag")
    use_quality_tags: bool = option(False, help="add the most probable quality tag, as the first tag")
    use_quality_tags_as_last_tag: bool = option(False, help="add the most probable quality tag, as the last tag")
    character_tags_first: bool = option(False, help="characters before all other tags")
    character_tag_expand: bool = option(False, help="name_(series) becomes two tags, name and series")
    always_first_tags: str | None = option(
        help="tags that come first wherever an image has them, separated by commas: 1girl,1boy", metavar=FREE_TEXT
    )
    tag_replacement: str | None = option(
        help="tags to replace: old1,new1;old2,new2 (\\, and \\; are part of a tag)", parse=parse_replacements,
        metavar=FREE_TEXT,
    )  # fmt: skip


@dataclass(frozen=True)
class TagFileOptions:
    """Where the tags go."""

    GROUP: ClassVar[str] = "Output"

    caption_extension: str = option(
        ".txt", help="file extension of the tag files beside the images", aliases=("caption_extention",),
        parse=parse_caption_extension, metavar="ENDING",
    )  # fmt: skip
    caption_separator: str = option(", ", help="separator of the tags", metavar=FREE_TEXT)
    append_tags: bool = option(False, help="add tags to those that a file has, instead of keeping it as it is")
    output_path: str | None = option(
        help="one .json or .jsonl file for the tags of all images, in place of tag files", metavar="FILE"
    )
    frequency_tags: bool = option(False, help="show how often each tag was given")

    def check(self) -> Iterator[UserError]:
        yield from extension_problems(self.caption_extension)
        if self.output_path is None:
            return
        path = Path(self.output_path)
        if path.suffix not in OUTPUT_ENDINGS:
            yield UserError(f"--output_path {path} ends with neither .json nor .jsonl", hint="give it one of these")
        elif not path.parent.is_dir():
            yield UserError(f"--output_path {path}: folder {path.parent} does not exist", hint="make it first")
