"""TOML files: read with the standard library's parser, written with `toml`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from library.cli.errors import UserError
from library.cli.text_files import read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_toml(path: str | Path, named_by: str) -> dict[str, Any]:
    """Reads a TOML 1.0 file that the user named with `named_by` (a flag).

    Raises `UserError` for a file that is missing, is a folder, is not UTF-8 or is not TOML (with line and column).
    """
    return parse_toml(read_text(path, named_by, ".toml"), path, named_by)


def parse_toml(text: str, path: str | Path, named_by: str) -> dict[str, Any]:
    """The tables of a TOML 1.0 text. `path` and `named_by` say whose it is in errors.

    Raises `UserError` with line and column where it is not TOML.
    """
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # RecursionError: brackets in brackets without end; ValueError: a number of thousands of digits
        reason = "its tables or lists are nested too deeply" if isinstance(error, RecursionError) else error
        raise UserError(f"{named_by} {path} is not valid TOML: {reason}", hint=_hint(text)) from None


def _hint(text: str) -> str:
    if "\\" in text:
        return "write Windows paths in single quotes, 'C:\\pictures', or with forward slashes"
    return "mend the file at that place"


def toml_text(document: dict[str, Any]) -> str:
    """The document as TOML text."""
    import toml

    return toml.dumps(document)
