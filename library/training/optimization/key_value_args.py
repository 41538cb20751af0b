"""Parses and checks the `key=value` arguments of optimizers and schedules. Imports no torch."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Mapping, Sequence
from inspect import Parameter
from typing import Any

from library.cli.errors import UserError, nearest_name

_NEXT_PAIR = re.compile(r"\s+(?=[A-Za-z_]\w*\s*=)")
_WORD = re.compile(r"[A-Za-z_][\w.:/-]*")
# words for values that Python spells differently
_MEANT = {"true": "True", "false": "False", "none": "None", "null": "None", "nan": "a number"}


def read_pairs(
    flag: str, arguments: Sequence[str], texts: Collection[str] = ()
) -> tuple[dict[str, Any], list[UserError]]:
    """The parsed values of the `key=value` arguments of option `flag`, by key, and the errors in the others.

    Values are Python literals (`.9,.999` is a tuple, `'a b'` a string), `inf`, or a single word, which is a string.
    Values of the keys in `texts` stay strings. One argument may hold several pairs: "a=1 b=2".
    """
    values: dict[str, Any] = {}
    problems = []
    for pair in (piece for argument in arguments for piece in pairs_in(argument)):
        key, equals, text = (part.strip() for part in pair.partition("="))
        if not equals or not key.isidentifier():
            hint = "write each as key=value, without spaces or in quotes"
            problems.append(UserError(f"{flag} {pair} is not key=value", hint=hint))
            continue
        if key in values:
            problems.append(UserError(f"{flag} gives {key} twice", hint="keep one of them"))
        try:
            values[key] = text if key in texts and not _is_quoted(text) else _value(text)
        except ValueError as error:
            problems.append(UserError(f"{flag} {pair}: {text!r} is not a valid value", hint=f"write {key}={error}"))
    return values, problems


def pairs_in(argument: str) -> list[str]:
    """The `key=value` pairs of one argument: `a=1 b=2`, as some files have it, is two, but a quoted string is one.

    An empty string has none.
    """
    text = argument.partition("=")[2].strip()
    return [argument] if _is_quoted(text) else [piece for piece in _NEXT_PAIR.split(argument.strip()) if piece]


def _is_quoted(text: str) -> bool:
    try:
        return isinstance(ast.literal_eval(text), str)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False


def _value(text: str) -> Any:
    """The parsed value. Raises `ValueError` whose text is what to write instead."""
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        pass
    if text.lower() in ("inf", "+inf", "-inf"):
        return float(text)
    if text.lower() in _MEANT:
        raise ValueError(_MEANT[text.lower()])
    if _WORD.fullmatch(text):
        return text
    raise ValueError("a number, .9,.999 for several, True, False, None or a word")


def unknown_arguments(flag: str, given: Mapping[str, Any], valid: Sequence[str], owner: str) -> list[UserError]:
    """An error for each argument that `owner` does not take."""
    problems = []
    for key in given:
        if key in valid:
            continue
        nearest = nearest_name(key, valid)
        takes = f"it takes {', '.join(valid)}" if valid else "leave it out: it takes none"
        hint = f"did you mean {nearest}?" if nearest else takes
        problems.append(UserError(f"{flag} {key}: {owner} has no such argument", hint=hint))
    return problems


def unfit_values(flag: str, given: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> list[UserError]:
    """An error for each value of another type than the parameter's default: one number for two, text for a number."""
    problems = []
    for key, value in given.items():
        default = parameters[key].default if key in parameters else None
        if value is not None and not _is_like(value, default):
            shown = f"give {key}={','.join(map(str, default)) if isinstance(default, tuple) else default} or the like"
            problems.append(UserError(f"{flag} {key}={value} has the wrong type", hint=shown))
    return problems


def _is_like(value: Any, default: Any) -> bool:
    if isinstance(default, tuple) and all(isinstance(item, (int, float)) for item in default):
        is_list = isinstance(value, (tuple, list)) and len(value) == len(default)
        return is_list and all(isinstance(item, (int, float)) for item in value)
    return not isinstance(default, (int, float)) or isinstance(value, (int, float))
