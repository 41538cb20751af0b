"""TOML files: read with the standard library's parser, written with `toml`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from library.cli.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_toml(path: str | Path, named_by: str) -> dict[str, Any]:
    """Reads a TOML 1.0 file that the user named with `named_by` (a flag).

    Raises `UserError` for a file that is missing, is a folder, is not UTF-8 or is not TOML (with line and column).
    """
    file = Path(path)
    if not file.is_file():
        kind = "is a folder" if file.is_dir() else "does not exist"
        raise UserError(f"{named_by} {path} {kind}", hint="give the path of a .toml file")
    try:
        return tomllib.loads(file.read_bytes().decode("utf-8-sig").replace("\r\n", "\n"))
    except UnicodeDecodeError as error:
        raise UserError(f"{named_by} {path} is not UTF-8 text: byte {error.start}", hint="save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{named_by} {path} is not valid TOML: {error}", hint=_hint(file)) from None
    except OSError as error:
        raise UserError(f"{named_by} {path} cannot be read: {error.strerror}") from None


def _hint(file: Path) -> str:
    if b"\\" in file.read_bytes():
        return "write Windows paths in single quotes, 'C:\\pictures', or with forward slashes"
    return "mend the file at that place"


def toml_text(document: dict[str, Any]) -> str:
    """The document as TOML text."""
    import toml

    return toml.dumps(document)
