"""One JSON or JSONL file of the tags of all images, in place of a tag file beside each.

JSON: image -> {"tags": ...}, the metadata that `fine_tune.py` reads. JSONL: {"image_path": ..., "tags": ...} a line.
Until all images are done, each process writes its tags as JSONL into a file of its own beside it, from which the next
run goes on if this one is killed.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from library.cli.atomic_files import atomic_path
from library.cli.documents import parse_json, read_json, read_text
from library.cli.errors import UserError

_FLAG = "--output_path"
_JOURNAL_ENDING = ".partial"
_IMAGE, _TAGS = "image_path", "tags"

Entries = dict[str, dict[str, Any]]  # by image


def read_entries(path: str) -> Entries:
    """The entries of an earlier run; none if there is no such file. Raises `UserError` for any other file."""
    if not Path(path).exists():
        return {}
    if path.endswith(".jsonl"):
        return _read_lines(path)
    entries = read_json(path, _FLAG)
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise _foreign(path, "its entries are no tables of images")
    return entries


@dataclass(frozen=True)
class Journal:
    """The tags that one process has given so far, written at once. `path`: of the one file."""

    path: str
    rank: int

    def add(self, image: str, tags: str) -> None:
        with open(f"{self.path}.{self.rank}{_JOURNAL_ENDING}", "a", encoding="utf-8", newline="\n") as file:
            # the line break comes first, so that a line that a kill has cut ends there
            file.write("\n" + json.dumps({_IMAGE: image, _TAGS: tags}, ensure_ascii=False))


def read_journals(path: str) -> dict[str, str]:
    """The tags in the journals beside the one file, by image; a line that a kill has cut is left out."""
    tags = {}
    for journal in _journals(path):
        for line in journal.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
                tags[entry[_IMAGE]] = entry[_TAGS]
            except (ValueError, KeyError, TypeError):
                continue
    return tags


def remove_journals(path: str) -> None:
    for journal in _journals(path):
        journal.unlink(missing_ok=True)


def _journals(path: str) -> list[Path]:
    return sorted(Path(path).parent.glob(f"{glob.escape(Path(path).name)}.*{_JOURNAL_ENDING}"))


def write_entries(path: str, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Replaces the file, whole or not at all. Raises `UserError` if it cannot be written."""
    if path.endswith(".jsonl"):
        lines = [json.dumps({_IMAGE: image, **entry}, ensure_ascii=False) + "\n" for image, entry in entries.items()]
        text = "".join(lines)
    else:
        text = json.dumps(entries, ensure_ascii=False, indent=2)
    try:
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="\n")
    except OSError as error:
        raise UserError(f"{_FLAG} {path} cannot be written: {error.strerror}", hint="free space, or allow it") from None


def tags_of(entries: Entries, image: str) -> str | None:
    """The tags that an image has already."""
    tags = entries.get(image, {}).get(_TAGS)
    return tags if isinstance(tags, str) else None


def with_tags(entries: Entries, tags: Mapping[str, str]) -> Entries:
    """The entries with new tags; the rest of an entry stays, such as a caption."""
    changed = {image: {**entries.get(image, {}), _TAGS: text} for image, text in tags.items()}
    return dict(sorted({**entries, **changed}.items()))


def _read_lines(path: str) -> Entries:
    entries: Entries = {}
    for number, line in enumerate(read_text(path, _FLAG, ".jsonl").splitlines(), start=1):
        if line.strip():
            entry = parse_json(line, f"{path}, line {number}", _FLAG)
            if not isinstance(entry, dict) or not isinstance(entry.get(_IMAGE), str):
                raise _foreign(path, f"line {number} has no {_IMAGE}")
            entries[entry.pop(_IMAGE)] = entry
    return entries


def _foreign(path: str, reason: str) -> UserError:
    return UserError(f"{_FLAG} {path} is not a file of tags: {reason}", hint="give another name; it stays as it is")
