"""Reads text, TOML and JSON files of users, and writes TOML; errors name the file, line and column.

And makes metadata valid that goes into the header of a file of weights.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from library.cli.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

logger = logging.getLogger(__name__)


def read_toml(path: str | Path, named_by: str) -> dict[str, Any]:
    """Reads a TOML 1.0 file that the user named with `named_by` (a flag).

    Raises `UserError` for a file that is missing, is a folder, is not UTF-8 or is not TOML (with line and column).
    """
    return parse_toml(read_text(path, named_by, ".toml"), path, named_by)


def parse_toml(text: str, path: str | Path, named_by: str) -> dict[str, Any]:
    """The tables of a TOML 1.0 text. `path` and `named_by` are for messages.

    Raises `UserError` with line and column where it is not TOML.
    """
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # RecursionError: nested too deeply; ValueError: also a number of thousands of digits
        reason = "its tables or lists are nested too deeply" if isinstance(error, RecursionError) else error
        raise UserError(f"{named_by} {path} is not valid TOML: {reason}", hint=_hint(text)) from None


_WINDOWS_PATHS = "write Windows paths in single quotes, 'C:\\images', or with forward slashes"


def _hint(text: str) -> str:
    return _WINDOWS_PATHS if "\\" in text else "fix the file at that place"


def no_such_path(path: str | Path, hint: str) -> tuple[str, str]:
    """(how to name a path that does not exist, the hint): "C:\\temp" in TOML's double quotes holds a tab."""
    text = str(path)
    return (repr(text), _WINDOWS_PATHS) if any(character < " " for character in text) else (text, hint)


def toml_text(document: dict[str, Any]) -> str:
    """The document as TOML 1.0 text, which `parse_toml` reads back."""
    import tomli_w

    return tomli_w.dumps(document)


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: names of files with other bytes come as lone surrogates."""
    return all(not "\ud800" <= character <= "\udfff" for character in text)


def read_text(path: str | Path, named_by: str, ending: str) -> str:
    """The text of a UTF-8 file, with or without a byte order mark, that the user named with `named_by`.

    Raises `UserError` for a file that is missing, is a folder, cannot be read or is not UTF-8. `ending`: the expected
    file ending, for the hint.
    """
    file = Path(path)
    try:
        if not (file.is_file() or file.is_fifo()):  # a shell's <(command) is a pipe
            kind = "is a folder" if file.is_dir() else "does not exist"
            named, hint = no_such_path(path, f"give the path of a {ending} file")
            raise UserError(f"{named_by} {named} {kind}", hint=hint)
        return file.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{named_by} {path} is not UTF-8 text: byte {error.start}", hint="save it as UTF-8") from None
    except ValueError:  # a null character
        raise UserError(f"{named_by} {str(path)!r} is not a path", hint=f"give the path of a {ending} file") from None
    except OSError as error:
        raise UserError(
            f"{named_by} {path} cannot be read: {error.strerror}", hint="make it readable, or name another file"
        ) from None


_FIX = "fix the file at that place"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # half of a character outside the basic plane


class _Refused(ValueError):
    """JSON that Python's parser accepts and the standard (RFC 8259) does not, or that is ambiguous."""


def read_json(path: str | Path, named_by: str) -> Any:
    """Reads a JSON file that the user named with `named_by` (a flag or a key path).

    Raises `UserError` for a file that is missing, is a folder, is not UTF-8 or is not JSON (with line and column), or
    in which a table has a key twice.
    """
    return parse_json(read_text(path, named_by, ".json"), path, named_by)


def parse_json(text: str, path: str | Path, named_by: str) -> Any:
    """The value of a JSON text. `path` and `named_by` are for messages.

    Raises `UserError` with line and column where it is not JSON, or if a table has a key twice.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except json.JSONDecodeError as error:
        reason, hint = f"{error.msg} (at line {error.lineno}, column {error.colno})", _FIX
    except UnicodeEncodeError as error:
        reason, hint = f"{ascii(error.object[error.start])} is half of a character", "write the character itself"
    except RecursionError:
        reason, hint = "its tables or lists are nested too deeply", "make it flatter"
    except ValueError as error:  # `_Refused`, or a number of thousands of digits
        reason, hint = str(error), _FIX
    raise UserError(f"{named_by} {path} is not valid JSON: {reason}", hint)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise _Refused(f"{json.dumps(twice, ensure_ascii=False)} is there twice")
    return table


def _refuse_constant(name: str) -> NoReturn:
    raise _Refused(f"{name} is not a JSON number")


# ---- metadata of files of weights

_TAG_TABLES = ("ss_tag_frequency", "ss_datasets")  # entries that grow with the captions
_MOST_TAG_BYTES = 8_000_000  # of one entry
_MOST_BYTES = 90_000_000  # readers refuse headers of more than 100 MB, of which some describes the tensors


def valid_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata as the header of a .safetensors file can hold it, and as all readers of it understand.

    Names with bytes that are not UTF-8 have these as escapes (`caf\\udce9`), also inside entries that are JSON. Tables
    of tags that would make the header too large keep the most frequent ones, and say so; whatever else would is left
    out, with a warning.
    """
    valid = {}
    for key, value in metadata.items():
        text = value
        if key in _TAG_TABLES and len(value) > _MOST_TAG_BYTES:
            text = _with_fewer_tags(value)
        if _SURROGATE.search(text):
            text = _escaped_in_json(text)
        valid[_escaped(key)] = _escaped(text)
    sizes = {key: len(json.dumps(value)) for key, value in valid.items()}
    for key in sorted(sizes, key=lambda name: -sizes[name]):
        if sum(sizes.values()) <= _MOST_BYTES:
            break
        logger.warning("the metadata entry %s is too large for a file, and is left out: %d bytes", key, sizes[key])
        valid[key] = f"(left out: {sizes.pop(key)} bytes)"
    return valid


def _escaped(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _escaped_in_json(text: str) -> str:
    """A JSON text whose strings are Unicode; other texts are unchanged."""
    try:
        value = json.loads(text)
        plain = json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError):
        return text
    return text if is_unicode(plain) else json.dumps(_escaped_within(value))


def _escaped_within(value: Any) -> Any:
    if isinstance(value, str):
        return _escaped(value)
    if isinstance(value, list):
        return [_escaped_within(each) for each in value]
    if isinstance(value, dict):
        return {_escaped(key): _escaped_within(each) for key, each in value.items()}
    return value


def _with_fewer_tags(text: str) -> str:
    """A JSON text with tables of tags by folder, cut to the most frequent tags; of other texts nothing is cut."""
    try:
        value = json.loads(text)
        if isinstance(value, dict):
            return json.dumps(_cut_table(value, _MOST_TAG_BYTES))
        budget = _MOST_TAG_BYTES // max(1, len(value))
        return json.dumps([{**each, "tag_frequency": _cut_table(each["tag_frequency"], budget)} for each in value])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return text  # of another program


def _cut_table(table: dict[str, dict[str, int]], budget: int) -> dict[str, dict[str, int]]:
    counted = [(count, folder, tag) for folder, tags in table.items() for tag, count in tags.items()]
    counted.sort(key=lambda each: -each[0])
    kept: dict[str, dict[str, int]] = {folder: {} for folder in table}
    num_kept = 0
    for count, folder, tag in counted:
        budget -= len(json.dumps(tag)) + len(f": {count}, ")
        if budget < 0:
            break
        kept[folder][tag] = count
        num_kept += 1
    note: dict[str, dict[str, int]] = (
        {} if num_kept == len(counted) else {f"(cut: the {num_kept} most frequent of {len(counted)} tags)": {}}
    )
    return {**kept, **note}
