"""Metadata files: read whole, for programs that change them, and written as other programs write them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from library.cli.atomic_files import atomic_path
from library.cli.errors import UserError, raise_together
from library.data.scan.metadata_entries import read_entries

Entries = dict[str, dict[str, Any]]


def read_metadata(path: str, named_by: str) -> Entries:
    """All entries of a metadata file, with what this program does not know. Raises `UserError` for any other file."""
    problems: list[UserError] = []
    entries = read_entries(path, named_by, problems)
    raise_together(problems)
    return entries


def write_metadata(path: str, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes a metadata file, replacing one at `path` atomically. Raises `UserError` where that is not possible."""
    target = os.path.realpath(path)  # a link stays one
    try:
        with atomic_path(target) as temporary:
            temporary.write_text(json.dumps(entries, indent=2), encoding="ascii")
    except OSError as error:
        raise UserError(
            f"OUT_JSON {path} cannot be written: {error.strerror}", "free disk space, or make its folder writable"
        ) from None
