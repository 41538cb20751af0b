"""Reads the entries of a metadata file: JSON of image key -> table with `caption`, `tags`, `train_resolution`.

Other keys of an entry are those of other programs: they are read, and not looked at.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from library.cli.documents import read_json
from library.cli.errors import UserError, plural
from library.data.buckets import LONGEST_SIDE

FORM = 'write {"image.png": {"caption": "a cat"}}'  # what a metadata file looks like, for hints

_MAX_INVALID_ENTRIES = 50
_PLACEHOLDER = "?"  # for an invalid text, which is reported: it is neither missing nor empty


def read_entries(path: str | Path, named_by: str, problems: list[UserError]) -> dict[str, dict[str, Any]]:
    """The entries of a metadata file that the user named with `named_by`, in its order.

    Invalid values are added to `problems`, and others stand in their place. Raises `UserError` for what is not a table.
    """
    document, named = read_json(path, named_by), f"{named_by} {path}"
    if not isinstance(document, dict):
        raise UserError(f"{named} is not a table", hint=FORM)
    invalid: list[UserError] = []
    entries = {key: _entry(key, value, invalid) for key, value in document.items()}
    problems += (UserError(f"{named}: {each.message}", each.hint) for each in invalid[:_MAX_INVALID_ENTRIES])
    if len(invalid) > _MAX_INVALID_ENTRIES:
        more = plural(len(invalid) - _MAX_INVALID_ENTRIES, "more value is", "more values are")
        problems.append(UserError(f"{named}: {more} not valid", hint="fix the program that wrote the file"))
    return entries


def _entry(key: str, value: Any, invalid: list[UserError]) -> dict[str, Any]:
    if not key or "\0" in key:
        hint = "give a path or the stem of an image"
        invalid.append(UserError(f"{_shown(key)} is not the name of an image", hint))
    if not isinstance(value, dict):
        hint = 'give a table such as {"caption": ""}'
        invalid.append(UserError(f"{_shown(key)} = {_shown(value)} is not valid", hint))
        return {"caption": _PLACEHOLDER}
    for name, (is_valid, expected) in _ENTRY_KEYS.items():
        given = value.get(name)  # some programs write null for no value
        if given is not None and not is_valid(given):
            invalid.append(UserError(f"{_shown(key)}.{name} = {_shown(given)} is not valid", hint=f"give {expected}"))
            value[name] = None if name == "train_resolution" else _PLACEHOLDER
    return value


def _shown(value: Any) -> str:
    text = "a table" if isinstance(value, dict) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_size(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(side, int) and not isinstance(side, bool) and 0 < side <= LONGEST_SIDE for side in value)
    )


_ENTRY_KEYS = {
    "caption": (_is_text, "a text"),
    "tags": (_is_text, "a text, comma-separated tags"),
    "train_resolution": (_is_size, "width and height in pixels, such as [512, 768]"),
}
