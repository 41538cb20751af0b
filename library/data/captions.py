"""Captions: from a caption file to what the text encoder reads."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from library.cli.errors import UserError
from library.data.config.config import SubsetConfig
from library.data.randomness import keyed_random

_JOINER = ", "  # whatever the separator was, prompts are written with commas

_WILDCARD = re.compile(r"\{([^}]+)\}")
# {{ and }} stand for braces while wildcards are drawn: code points that no text may hold
_ESCAPES = (("{{", "\ufdd0", "{"), ("}}", "\ufdd1", "}"))

_AFTER_WARMUP = 2**40  # a step at which captions have all their tags, whatever `token_warmup_step` is
_DRAWS_PER_VARIANT = 8
_NO_STEPS = 1e-12  # a share of all steps that is none: tags are taken apart and joined, and none is missing


def read_caption_file(path: str, all_lines: bool = False) -> str:
    """The first line of a caption file, without white space around it. UTF-8, with or without a byte order mark.

    `all_lines`: every line that is not blank, without white space around it, joined by line feeds. Raises `UserError`
    naming the file if it cannot be read or decoded.
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
    """The caption in what `read_caption_file` read from `path`. Raises `UserError` if it cannot be decoded."""
    try:
        text = content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(f"caption file {path} is not UTF-8 text: byte {error.start}", hint="save it as UTF-8") from None
    if all_lines:
        return "\n".join(line.strip() for line in _lines(text) if line.strip())
    return first_line(text).strip()


def _lines(text: str) -> list[str]:
    """The lines, whichever system wrote the line breaks."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def first_line(text: str) -> str:
    """The text before the first line break, whichever system wrote it."""
    return _lines(text)[0] if "\n" in text or "\r" in text else text


def final_caption(
    caption: str, subset: SubsetConfig, rng: random.Random, *, epoch: int = 1, step: int = 0, num_steps: int = 1
) -> str:
    """The caption as it is trained once, in this order:

    1. nothing is left of it by `caption_dropout_rate`, and in each `caption_dropout_every_n_epochs`th epoch; with
       `caption_templates` it is one of these, as it stands there;
    2. `caption_prefix` and `caption_suffix` with a space between;
    3. one of its lines and of the texts of each {a|b} with `enable_wildcard`, without it the first line;
    4. with shuffling, token warm-up or tag dropout it is split at `caption_separator`: tags that must stay in place
       stay, of the others the first few are taken during warm-up, shuffled, and dropped one by one;
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
    if subset.shuffle_caption or subset.token_warmup_step > 0 or subset.caption_tag_dropout_rate > 0:
        start, movable, end = _split_tags(caption, subset)
        movable = movable[: _num_warm(len(movable), subset, step, num_steps)]
        if subset.shuffle_caption:
            rng.shuffle(movable)
        if subset.caption_tag_dropout_rate > 0:
            movable = [tag for tag in movable if rng.random() >= subset.caption_tag_dropout_rate]
        caption = _JOINER.join(start + movable + end)
    if subset.secondary_separator:
        caption = caption.replace(subset.secondary_separator, subset.caption_separator)
    return caption


def with_whole_captions(subset: SubsetConfig) -> SubsetConfig:
    """Settings that give captions with all their tags, in order, written as the subset's shuffled ones are."""
    changes_tags = subset.shuffle_caption or subset.token_warmup_step > 0 or subset.caption_tag_dropout_rate > 0
    return replace(
        subset,
        caption_dropout_rate=0.0,
        caption_dropout_every_n_epochs=0,
        caption_tag_dropout_rate=0.0,
        shuffle_caption=False,
        token_warmup_step=_NO_STEPS if changes_tags else 0.0,
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
    caption = _WILDCARD.sub(lambda match: rng.choice(match[1].split("|")), caption)
    for _, stand_in, meant in _ESCAPES:
        caption = caption.replace(stand_in, meant)
    return caption


def _split_tags(caption: str, subset: SubsetConfig) -> tuple[list[str], list[str], list[str]]:
    """Tags that stay at the start, tags that can move and be dropped, tags that stay at the end.

    `keep_tokens_separator` in the caption counts before `keep_tokens`; a second one begins the tags at the end.
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
    """How many of the tags that can move are taken: from `token_warmup_min` up to all at `token_warmup_step`."""
    end: float = subset.token_warmup_step
    if end < 1:
        end = int(end * num_steps)
    if step >= end:
        return num_tags
    # never negative: where there are fewer tags than the minimum, the sum stays above their number
    return subset.token_warmup_min + int(step * (num_tags - subset.token_warmup_min) // end)


def caption_variants(caption: str, subset: SubsetConfig, limit: int = 5) -> list[str]:
    """At most `limit` different captions that `final_caption` makes of one, with all tags; always the same ones."""
    variants: dict[str, None] = {}
    for number in range(limit * _DRAWS_PER_VARIANT):
        rng = keyed_random("caption variant", caption, number)
        drawn = final_caption(caption, subset, rng, epoch=number + 1, step=_AFTER_WARMUP, num_steps=_AFTER_WARMUP)
        variants.setdefault(drawn)
        if len(variants) == limit:
            break
    return list(variants)


def tag_frequency(captions: Iterable[str]) -> dict[str, int]:
    """How often each tag occurs, tags being what stands between commas; in order of first occurrence."""
    return dict(Counter(tag for caption in captions for tag in map(str.strip, caption.split(",")) if tag))
