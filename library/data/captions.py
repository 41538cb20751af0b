"""Captions: from a caption file to what the text encoder reads."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

from library.cli.errors import UserError
from library.data.config import SubsetConfig

_JOINER = ", "  # whatever the separator was, prompts are written with commas


def read_caption_file(path: str) -> str:
    """The first line of a caption file, without white space around it. UTF-8, with or without a byte order mark.

    Raises `UserError` naming the file if it cannot be read or decoded.
    """
    try:
        with open(path, "rb") as file:
            text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"caption file {path} is not UTF-8 text: byte {error.start}", hint="save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"caption file {path} cannot be read: {error.strerror}") from None
    return first_line(text).strip()


def first_line(text: str) -> str:
    """The text before the first line break, whichever system wrote it."""
    return text.replace("\r", "\n").split("\n", 1)[0]


def final_caption(
    caption: str, subset: SubsetConfig, rng: random.Random, *, epoch: int = 1, step: int = 0, num_steps: int = 1
) -> str:
    """The caption as it is trained once: shuffled, where the subset says so, behind the first `keep_tokens` tags.

    epoch: counts from 1. step: optimizer steps done, of the `num_steps` of the run.
    """
    caption = first_line(caption)
    if not subset.shuffle_caption:
        return caption
    tags = [tag.strip() for tag in caption.strip().split(subset.caption_separator)]
    kept, movable = tags[: subset.keep_tokens], tags[subset.keep_tokens :]
    rng.shuffle(movable)
    return _JOINER.join(kept + movable)


def tag_frequency(captions: Iterable[str]) -> dict[str, int]:
    """How often each tag occurs, tags being what stands between commas; in order of first occurrence."""
    return dict(Counter(tag for caption in captions for tag in map(str.strip, caption.split(",")) if tag))
