"""Captions: caption files, shuffling, dropout, wildcards, token warm-up; up to the text that is tokenized."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from library.cli.errors import UserError
from library.data.config.config import SubsetConfig

_WILDCARD = re.compile(r"\{([^}]+)\}")
# {{ and }} escape braces: replaced by code points that no text may hold while wildcards are drawn
_ESCAPES = (("{{", "\ufdd0", "{"), ("}}", "\ufdd1", "}"))

_WEIGHTED = re.compile(r"\([^()]*:\s*\d*\.?\d+\s*\)")

_NO_STEPS = 1e-12  # a token warm-up of no steps: the caption is split into tags and joined again, none is missing


def read_caption_file(path: str, all_lines: bool = False) -> str:
    """The first line of a caption file, stripped. UTF-8, with or without a byte order mark.

    `all_lines`: every line that is not blank, stripped, joined by line feeds. Raises `UserError` naming the file if it
    cannot be read or decoded.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise UserError(
            f"caption file {path} cannot be read: {error.strerror}", hint="make it readable, or remove it"
        ) from None
    return caption_from_bytes(content, path, all_lines)


def caption_from_bytes(content: bytes, path: str, all_lines: bool = False) -> str:
    """The caption in the bytes of the caption file `path`. Raises `UserError` if they are not UTF-8."""
    try:
        text = content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(f"caption file {path} is not UTF-8 text: byte {error.start}", hint="save it as UTF-8") from None
    return caption_from_text(text, all_lines)


def caption_from_text(text: str, all_lines: bool = False) -> str:
    """The caption in the text of a caption file."""
    if all_lines:
        return "\n".join(line.strip() for line in _lines(text) if line.strip())
    return first_line(text).strip()


def has_more_lines(content: bytes) -> bool:
    """Whether a caption file has text behind its first line that has some."""
    text = content.strip()
    return b"\n" in text or b"\r" in text


def _lines(text: str) -> list[str]:
    """The lines, whichever system wrote the line breaks."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def first_line(text: str) -> str:
    """The text before the first line break, whichever system wrote it."""
    return _lines(text)[0] if "\n" in text or "\r" in text else text


def final_caption(
    caption: str, subset: SubsetConfig, rng: random.Random, *, epoch: int = 1, step: int = 0, num_steps: int = 1
) -> str:
    """The caption of one use of an image, after these steps, in this order:

    1. caption dropout: empty with probability `caption_dropout_rate`, and in every `caption_dropout_every_n_epochs`-th
       epoch; with `caption_templates`, one of them, unchanged;
    2. `caption_prefix` and `caption_suffix` are added, with a space between;
    3. `enable_wildcard`: one of its lines and one text of each {a|b}; without it, the first line;
    4. with shuffling, token warm-up or tag dropout it is split at `caption_separator`: the tags to keep stay where
       they are, of the others token warm-up takes the first few, which are shuffled and dropped one by one; the rest is
       joined with the separator;
    5. `secondary_separator` becomes `caption_separator`.

    epoch: counts from 1. step: optimizer steps done, of the `num_steps` of the run.
    """
    if _is_dropped(subset, rng, epoch):
        return ""
    if subset.caption_templates:
        return rng.choice(subset.caption_templates)
    if subset.caption_prefix:
        caption = f"{subset.caption_prefix} {caption}"
    if subset.caption_suffix:
        caption = f"{caption} {subset.caption_suffix}"
    caption = _draw_wildcards(caption, rng) if subset.enable_wildcard else first_line(caption)
    if splits_tags(subset):
        start, movable, end = _split_tags(caption, subset)
        movable = movable[: _num_warm(len(movable), subset, step, num_steps)]
        if subset.shuffle_caption:
            rng.shuffle(movable)
        if subset.caption_tag_dropout_rate > 0:
            movable = [tag for tag in movable if rng.random() >= subset.caption_tag_dropout_rate]
        caption = joiner(subset.caption_separator).join(start + movable + end)
    if subset.secondary_separator:
        caption = caption.replace(subset.secondary_separator, subset.caption_separator)
    return caption


def splits_tags(subset: SubsetConfig) -> bool:
    """Whether captions are split into tags, which are shuffled or dropped."""
    return subset.shuffle_caption or subset.token_warmup_step > 0 or subset.caption_tag_dropout_rate > 0


def splits_weights(caption: str, separator: str) -> bool:
    """Whether a separator stands within brackets with a weight, such as (a, b:1.2)."""
    return ":" in caption and any(separator in match[0] for match in _WEIGHTED.finditer(caption))


def joiner(separator: str) -> str:
    """What stands between tags that are joined: the separator and a blank, unless it ends in one."""
    return separator if separator.endswith(" ") else f"{separator} "


def with_whole_captions(subset: SubsetConfig) -> SubsetConfig:
    """The subset without shuffling, dropout and warm-up: all tags in order, joined as its shuffled captions are."""
    return replace(
        subset,
        caption_dropout_rate=0.0,
        caption_dropout_every_n_epochs=0,
        caption_tag_dropout_rate=0.0,
        shuffle_caption=False,
        token_warmup_step=_NO_STEPS if splits_tags(subset) else 0.0,
    )


def _is_dropped(subset: SubsetConfig, rng: random.Random, epoch: int) -> bool:
    if subset.caption_dropout_rate > 0 and rng.random() < subset.caption_dropout_rate:
        return True
    return subset.caption_dropout_every_n_epochs > 0 and epoch % subset.caption_dropout_every_n_epochs == 0


def _draw_wildcards(caption: str, rng: random.Random) -> str:
    """One of the lines, with one text for each {a|b}; {{ and }} become braces. Wildcards do not nest."""
    lines = _lines(caption)
    caption = rng.choice(lines) if len(lines) > 1 else caption
    if "{" not in caption and "}" not in caption:
        return caption
    for written, stand_in, _ in _ESCAPES:
        caption = caption.replace(written, stand_in)
    # up to the last brace: behind it, an opened one would be looked for in vain again and again
    closed, brace, rest = caption.rpartition("}")
    caption = _WILDCARD.sub(lambda match: rng.choice(match[1].split("|")), closed + brace) + rest
    for _, stand_in, meant in _ESCAPES:
        caption = caption.replace(stand_in, meant)
    return caption


def _split_tags(caption: str, subset: SubsetConfig) -> tuple[list[str], list[str], list[str]]:
    """(kept at the start, shuffled and dropped, kept at the end).

    `keep_tokens_separator` in the caption overrides `keep_tokens`; a second one begins the tags kept at the end.
    """
    if subset.keep_tokens_separator and subset.keep_tokens_separator in caption:
        parts = (caption.split(subset.keep_tokens_separator, 2) + [""])[:3]
        start, movable, end = ([tag for tag in _tags(part, subset) if tag] for part in parts)
        return start, movable, end
    tags = _tags(caption, subset)
    return tags[: subset.keep_tokens], tags[subset.keep_tokens :], []


def _tags(text: str, subset: SubsetConfig) -> list[str]:
    return [tag.strip() for tag in text.strip().split(subset.caption_separator)]


def _num_warm(num_tags: int, subset: SubsetConfig, step: int, num_steps: int) -> int:
    """Token warm-up: how many of the tags that are not kept are used, `token_warmup_min` up to all at the last step."""
    end: float = subset.token_warmup_step
    if end < 1:
        end = int(end * num_steps)
    if step >= end:
        return num_tags
    # never negative: where there are fewer tags than the minimum, the sum stays above their number
    return subset.token_warmup_min + int(step * (num_tags - subset.token_warmup_min) // end)


def tag_frequency(captions: Iterable[str], separator: str) -> dict[str, int]:
    """How often each tag occurs, in lower case, in order of first occurrence."""
    tags = (tag for caption in captions for tag in map(str.strip, caption.lower().split(separator.lower())) if tag)
    return dict(Counter(tags))
