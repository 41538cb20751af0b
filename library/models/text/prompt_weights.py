"""The syntax of prompt weights: (more), (much:1.3), [less]; \\( and \\[ are plain brackets."""

from __future__ import annotations

import re

WeightedText = tuple[str, float]

_MORE = 1.1
_LESS = 1 / 1.1
_TOKEN = re.compile(
    r"\\(?P<escaped>[()\[\]\\])"
    r"|(?P<dropped>\\)"  # a backslash before anything else
    r"|(?P<open>[(\[])"
    r"|:(?P<number>[+-]?(?:\d+\.?\d*|\.\d+))\)"
    r"|(?P<close>[)\]])"
    r"|(?P<text>[^\\()\[\]:]+|:)"
)
_FACTORS = {"(": _MORE, "[": _LESS}
_OPENINGS = {")": "(", "]": "["}


def parse_prompt_weights(prompt: str) -> list[WeightedText]:
    """The parts of a prompt with their weights; neighbours of equal weight are one part.

    An unclosed bracket applies to all that follows it; an unopened one is text, as is what follows a colon and is not
    a number. A prompt without text gives one empty part.
    """
    parts: list[list] = []  # [text, weight]
    open_brackets: dict[str, list[int]] = {"(": [], "[": []}
    for token in _TOKEN.finditer(prompt):
        kind, text = token.lastgroup, token.group()
        if kind == "open":
            open_brackets[text].append(len(parts))
        elif kind == "number" and open_brackets["("]:
            _scale(parts, open_brackets["("].pop(), float(token["number"]))
        elif kind == "close" and open_brackets[_OPENINGS[text]]:
            opening = _OPENINGS[text]
            _scale(parts, open_brackets[opening].pop(), _FACTORS[opening])
        elif kind == "escaped":
            parts.append([token["escaped"], 1.0])
        elif kind != "dropped":
            parts.append([text, 1.0])
    for opening, starts in open_brackets.items():
        for start in starts:
            _scale(parts, start, _FACTORS[opening])
    return _merged(parts)


def _scale(parts: list[list], start: int, factor: float) -> None:
    for part in parts[start:]:
        part[1] *= factor


def _merged(parts: list[list]) -> list[WeightedText]:
    merged: list[WeightedText] = []
    for text, weight in parts:
        if merged and merged[-1][1] == weight:
            merged[-1] = (merged[-1][0] + text, weight)
        else:
            merged.append((text, weight))
    return merged or [("", 1.0)]
