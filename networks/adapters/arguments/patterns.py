"""Regular expressions over module names in `--network_args`, such as `down_blocks.0.attentions.0.proj_in`.

A pattern is to match the whole name of a layer in its model, with dots: `.*attn2.*` for all layers of cross-attention.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from networks.adapters.arguments.numbers import number, rank_or_none

Value = TypeVar("Value")
_PAIR = re.compile(r"(.+?)=\s*([-+.\w]*)\s*(?:,|$)", re.DOTALL)
_LIST = "a regular expression, or a list of them: ['.*attn1.*', '.*ff.*']"


def patterns(value: Any) -> tuple[re.Pattern[str], ...]:
    """One regular expression, or a Python list of them."""
    found = value
    if isinstance(value, str) and value.strip().startswith(("[", "(")):
        try:
            found = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            found = value  # a regular expression may begin so, too
    texts = [found] if isinstance(found, str) else found
    if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(_LIST)
    return tuple(_compiled(text, _LIST) for text in texts)


def reg_dims(value: Any) -> tuple[tuple[re.Pattern[str], int], ...]:
    """`pattern=rank,...`; rank 0: no layer."""
    return _pairs(value, rank_or_none, "pattern=rank, with commas between several; a rank is a whole number from 0")


def reg_lrs(value: Any) -> tuple[tuple[re.Pattern[str], float], ...]:
    """`pattern=rate,...`."""
    return _pairs(value, _rate, "pattern=learning rate, with commas between several; a rate is a number from 0")


def _rate(text: str) -> float:
    return number(text, "", lambda number: number >= 0)


def _pairs(value: Any, parse: Callable[[str], Value], description: str) -> tuple[tuple[re.Pattern[str], Value], ...]:
    text, position, pairs = str(value).strip(), 0, []
    while position < len(text):
        found = _PAIR.match(text, position)
        if found is None:
            raise ValueError(description)
        try:
            parsed = parse(found.group(2))
        except ValueError:
            raise ValueError(description) from None
        pairs.append((_compiled(found.group(1).strip(), description), parsed))
        position = found.end()
    return tuple(pairs)


def _compiled(text: str, description: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(f"{description}; {text} is none: {error}") from None


def matched(pairs: Sequence[tuple[re.Pattern[str], Value]], path: str) -> tuple[int, Value] | None:
    """Index and value of the first pair whose pattern matches the whole name of a module."""
    return next(((index, value) for index, (pattern, value) in enumerate(pairs) if pattern.fullmatch(path)), None)
