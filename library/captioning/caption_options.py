"""Options of the captioning scripts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from library.captioning.caption_files import extension_problems
from library.cli.errors import UserError
from library.cli.options import FREE_TEXT, option
from library.data.config.options import parse_caption_extension

DEFAULT_BLIP = "Salesforce/blip-image-captioning-large"
DEFAULT_GIT = "microsoft/git-large-textcaps"


@dataclass(frozen=True)
class BlipOptions:
    """The BLIP model, and how it chooses words."""

    GROUP: ClassVar[str] = "Model"

    caption_weights: str = option(
        DEFAULT_BLIP, help="BLIP model: its name on the Hugging Face Hub, or a folder", metavar="MODEL"
    )
    beam_search: bool = option(False, help="the most probable caption by beam search, in place of a random one")
    num_beams: int = option(1, help="beams of --beam_search; 1: the most probable word each time", minimum=1)
    top_p: float = option(
        0.9, help="random captions: of each word's candidates the most probable with this sum", above=0, maximum=1
    )
    max_length: int = option(75, help="most tokens of a caption", minimum=2)
    min_length: int = option(5, help="least tokens of a caption", minimum=0)
    seed: int = option(42, help="seed of random captions; an image's caption depends on it and on the image's name")

    def check(self) -> Iterator[UserError | str]:
        if self.min_length > self.max_length:
            yield UserError(
                f"--min_length {self.min_length} is larger than --max_length {self.max_length}",
                hint="lower the one, or raise the other",
            )
        if self.num_beams > 1 and not self.beam_search:
            yield "--num_beams has no effect without --beam_search"


@dataclass(frozen=True)
class GitOptions:
    """The GIT model."""

    GROUP: ClassVar[str] = "Model"

    model_id: str = option(
        DEFAULT_GIT, help="GIT model: its name on the Hugging Face Hub, or a folder", metavar="MODEL"
    )
    max_length: int = option(50, help="most tokens of a caption", minimum=2)
    remove_words: bool = option(
        False, help="remove what captions say about writing in the image, such as: with the words stop here"
    )


@dataclass(frozen=True)
class CaptionFileOptions:
    """The caption files."""

    GROUP: ClassVar[str] = "Output"

    caption_extension: str = option(
        ".caption", help="file extension of the caption files beside the images", aliases=("caption_extention",),
        parse=parse_caption_extension, metavar="ENDING",
    )  # fmt: skip
    prefix: str = option("", help="text before each caption", metavar=FREE_TEXT)
    postfix: str = option("", help="text behind each caption", metavar=FREE_TEXT)

    def check(self) -> Iterator[UserError]:
        yield from extension_problems(self.caption_extension)
