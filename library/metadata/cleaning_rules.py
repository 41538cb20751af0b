"""The rules by which captions and tags are cleaned: from the table of the script or a TOML file, checked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from library.cli.documents import read_toml
from library.cli.errors import UserError, nearest_name, raise_together


@dataclass(frozen=True)
class CleaningRules:
    """What is cleaned, as the table of `clean_captions_and_tags.py` has it. Patterns match whole tags."""

    caption_replacements: tuple[tuple[str, str], ...] = ()  # in this order
    replace_underscores: bool = False  # by blanks
    keep_underscores: tuple[str, ...] = ()  # tags that keep theirs
    cut_from: tuple[str, ...] = ()  # patterns: such a tag goes with all behind it, unless it is the first
    several_people: tuple[str, ...] = ()  # patterns of tags that say that there are several people
    describe_one: tuple[str, ...] = ()  # patterns: with several people, two or more tags of one pattern go
    general: tuple[str, ...] = ()  # patterns: such a tag goes where another ends with it: "shirt" for "white shirt"


_NAMES = tuple(field.name for field in fields(CleaningRules))
_PATTERNS = ("cut_from", "several_people", "describe_one", "general")


def read_rules(path: str, named_by: str) -> CleaningRules:
    """The rules of a TOML file, in place of all others. Raises `UserError` with all that is wrong in it."""
    return make_rules(read_toml(path, named_by), f"{named_by} {path}")


def make_rules(table: Mapping[str, Any], source: str) -> CleaningRules:
    """The rules of a table of names and lists. Raises `UserError` with all that is wrong in it, found in `source`."""
    raise_together(
        UserError(f"{source}: {name} {problem}", hint)
        for name, value in table.items()
        for problem, hint in _rule_problems(name, value)
    )
    values: dict[str, Any] = {name: value if isinstance(value, bool) else tuple(value) for name, value in table.items()}
    if "caption_replacements" in values:
        values["caption_replacements"] = tuple(map(tuple, values["caption_replacements"]))
    return CleaningRules(**values)


def _rule_problems(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """What is wrong with one entry of a file of rules, and what to do."""
    if name not in _NAMES:
        nearest = nearest_name(name, _NAMES)
        yield "is not a rule", f"did you mean {nearest}?" if nearest else f"known are {', '.join(_NAMES)}"
    elif name == "replace_underscores":
        if not isinstance(value, bool):
            yield f"= {value!r} is not valid", "give true or false"
    elif name == "caption_replacements":
        is_valid = isinstance(value, list) and all(_are_texts(each) and len(each) == 2 and each[0] for each in value)
        if not is_valid:
            yield "is not valid", 'give pairs of texts, what is replaced and by what: [["old", "new"]]'
    elif not _are_texts(value):
        yield "is not valid", "give a list of texts"
    elif name in _PATTERNS:
        yield from _pattern_problems(value)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _pattern_problems(patterns: Iterable[str]) -> Iterator[tuple[str, str]]:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            yield f"has {pattern!r}, which is not a regular expression: {error}", "correct it"
