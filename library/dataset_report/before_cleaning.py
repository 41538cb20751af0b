"""What cleaning has changed in captions and tags: a metadata file against that of --debug_dataset_before."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from library.cli.errors import UserError, raise_together
from library.data.batches.plan import TrainingData
from library.data.config.config import SubsetConfig
from library.data.scan.metadata_file import Entry, find_images_of_entries

FLAG = "--debug_dataset_before"
_MOST_TAGS = 20  # of those that went, in the summary


@dataclass(frozen=True)
class Piece:
    """A tag or some words: kept, gone from what was before, or new."""

    text: str
    kind: Literal["kept", "gone", "new"]


@dataclass(frozen=True)
class Change:
    """The caption or the tags of an image, from before to now."""

    title: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Cleaning:
    """What has changed, by the path of the image; images of which nothing went or came are not in it."""

    file: str
    changes: Mapping[str, tuple[Change, ...]]

    @property
    def tags_gone(self) -> list[tuple[str, int]]:
        """The tags that went most often, and from how many images."""
        counts = Counter(
            tag
            for changes in self.changes.values()
            for change in changes
            if change.title == "tags"
            for tag in {piece.text for piece in change.pieces if piece.kind == "gone"}
        )
        return sorted(counts.items(), key=lambda each: (-each[1], each[0]))[:_MOST_TAGS]


def compare(data: TrainingData, file: str) -> Cleaning:
    """The entries of all metadata files of the data against those of `file`, for images that both have.

    Raises `UserError` where no subset has a metadata file, for one that cannot be read, and where `file` describes none
    of the images.
    """
    subsets = [subset for dataset in data.datasets for subset in dataset.config.subsets if subset.metadata_file]
    if not subsets:
        raise UserError(f"{FLAG} {file}: no subset has a metadata file to compare it with", "give one with --in_json")
    changes: dict[str, tuple[Change, ...]] = {}
    found = False
    for subset in subsets:
        earlier = _entries(replace(subset, metadata_file=file, key_path=FLAG))
        for path, entry in _entries(subset).items():
            if path in earlier:
                found = True
                changed = tuple(_changes(earlier[path], entry))
                changes |= {path: changed} if changed else {}
    if not found:
        raise UserError(
            f"{FLAG} {file} describes none of the images", "give the file that was cleaned, with the same keys"
        )
    return Cleaning(file, changes)


def _entries(subset: SubsetConfig) -> dict[str, Entry]:
    """The entries of a metadata file, by the path of their image."""
    problems: list[UserError] = []
    found = find_images_of_entries(subset, problems)
    raise_together(problems)
    return {each.path: each.entry for each in found}


def _changes(before: Entry, after: Entry) -> Iterator[Change]:
    caption = tuple(_of_words(before.caption or "", after.caption or ""))
    tags = tuple(_of_tags(_split(before.tags), _split(after.tags)))
    for change in (Change("caption", caption), Change("tags", tags)):
        if any(piece.kind != "kept" for piece in change.pieces):
            yield change


def _of_words(before: str, after: str) -> Iterator[Piece]:
    old, new = before.split(), after.split()
    for kind, start, end, new_start, new_end in difflib.SequenceMatcher(None, old, new, False).get_opcodes():
        if kind == "equal":
            yield Piece(" ".join(old[start:end]), "kept")
        else:
            if end > start:
                yield Piece(" ".join(old[start:end]), "gone")
            if new_end > new_start:
                yield Piece(" ".join(new[new_start:new_end]), "new")


def _split(tags: str | None) -> list[str]:
    return [tag.strip() for tag in (tags or "").split(",") if tag.strip()]


def _of_tags(before: Sequence[str], after: Sequence[str]) -> Iterator[Piece]:
    """Tags of before in their order, then new ones; one that is only spelled with blanks now is kept."""
    left = Counter(after)
    for tag in before:
        spelled = next((each for each in (tag, tag.replace("_", " ")) if left[each]), None)
        left.subtract([spelled] if spelled is not None else [])
        yield Piece(spelled or tag, "gone" if spelled is None else "kept")
    yield from (Piece(tag, "new") for tag in (+left).elements())
