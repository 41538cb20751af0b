"""Length of captions in tokens, and where they are truncated."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# words as CLIP's tokenizer splits them: letters, single digits, runs of other characters
_WORD = re.compile(r"[^\W\d_]+|\d|(?:[^\w\s]|_)+")
_LONG_WORD = 24  # letters: more is text without spaces, such as Japanese


@dataclass(frozen=True)
class TokenLimit:
    """Counts the tokens of a text, without start and end tokens, and the maximum that the text encoder reads."""

    count: Callable[[str], int]
    limit: int


@dataclass(frozen=True)
class CaptionLength:
    """Tokens of a caption, and how many of its characters are not truncated."""

    num_tokens: int
    kept: int


def measure_caption(caption: str, tokens: TokenLimit) -> CaptionLength:
    """Counts the tokens; for a caption over the limit, finds the last whole word before truncation."""
    num_tokens = tokens.count(caption)
    if num_tokens <= tokens.limit:
        return CaptionLength(num_tokens, len(caption))
    ends = [match.end() for match in _WORD.finditer(caption)]
    whole = _last_fitting(caption, ends, num_tokens, tokens)
    kept = ends[whole - 1] if whole else 0
    cut_word = range(kept + 1, ends[whole] + 1 if whole < len(ends) else len(caption) + 1)
    if len(cut_word) > _LONG_WORD:
        kept += _last_fitting(caption, cut_word, tokens.count(caption[: cut_word[-1]]), tokens)
    return CaptionLength(num_tokens, kept)


def _last_fitting(caption: str, ends: Sequence[int], num_tokens: int, tokens: TokenLimit) -> int:
    """How many of the texts that end at `ends` are within the limit; the last, of `num_tokens`, is not.

    Interpolation search, since tokens are spread about evenly and counting them is slow.
    """
    low, low_count = 0, 0
    high, high_count = len(ends), num_tokens
    while high - low > 1:
        share = (tokens.limit + 0.5 - low_count) / (high_count - low_count)
        guess = min(max(low + round(share * (high - low)), low + 1), high - 1)
        count = tokens.count(caption[: ends[guess - 1]])
        if count <= tokens.limit:
            low, low_count = guess, count
        else:
            high, high_count = guess, count
    return low
