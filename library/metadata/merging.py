"""Merges the caption or tag files beside images into the entries of a metadata file."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

from library.cli.documents import is_unicode, read_text
from library.cli.errors import UserError, listed, plural
from library.cli.jobs.outcome import Outcome
from library.cli.logging import progress_bar
from library.data.scan.image_search import find_images
from library.metadata.files import Entries, read_metadata, write_metadata
from library.metadata.options import MergeOptions

logger = logging.getLogger(__name__)

_MAX_NAMES_IN_WARNING = 5
_ENDINGS = (".txt", ".caption")  # those that captioning programs write


def merge_captions(options: MergeOptions, outcome: Outcome) -> None:
    """Merges caption files, see `_merge`."""
    _merge(options, "caption", "caption file", outcome)


def merge_tags(options: MergeOptions, outcome: Outcome) -> None:
    """Merges tag files, see `_merge`."""
    _merge(options, "tags", "tag file", outcome)


def _merge(options: MergeOptions, name: str, file: str, outcome: Outcome) -> None:
    """Merges the texts beside the images of a folder into a metadata file, as `name` of each entry.

    An image without a text is in `outcome.failed`; its entry stays as it is, or is not made. Raises `UserError`, and
    leaves the metadata file as it was, where that cannot be read or no image has a text.
    """
    entries = _read(options)
    images = find_images(options.folder, recursive=options.recursive)
    _check_files(images, options, file)
    known = frozenset(entries)
    merged: dict[str, str] = {}  # key -> image
    shared = []  # images that have the entry of another
    for image, text in _texts(images, options, file, outcome):
        key = image if options.full_path else _stem(image)
        if merged.setdefault(key, image) != image:
            shared.append(f"{merged[key]} and {image} ({key})")
        entries.setdefault(key, {})[name] = text
        if options.debug:
            logger.info("%s: %s of %s: %s", image, name, key, text)
    if shared:
        logger.warning(
            "images of the same name have one entry: %s; give --full_path, or rename them",
            listed(shared, _MAX_NAMES_IN_WARNING),
        )
    _warn_of_second_keys(known, merged)
    if outcome.done:
        write_metadata(options.target, entries)
        count = plural(len(entries), "entry", "entries")
        logger.info("%s has %s, %d of them new", options.target, count, len(entries) - len(known))


def _read(options: MergeOptions) -> Entries:
    if options.in_json is not None:
        return read_metadata(options.in_json, "--in_json")
    return read_metadata(options.target, "OUT_JSON") if os.path.lexists(options.target) else {}


def _check_files(images: Iterable[str], options: MergeOptions, file: str) -> None:
    """Raises `UserError` where no image at all has a caption or tag file: a wrong extension is likely."""
    stems = [os.path.splitext(image)[0] for image in images]
    ending = options.caption_extension
    if any(os.path.lexists(stem + ending) for stem in stems):
        return
    others = {each: sum(os.path.exists(stem + each) for stem in stems) for each in _ENDINGS}
    hints = [
        f"{plural(count, 'has', 'have')} a {each} file: add --caption_extension {each}"
        for each, count in others.items()
        if count
    ]
    raise UserError(
        f"of {plural(len(stems), 'image')} in {options.folder} none has a {file} ({ending})",
        hint=" or ".join(hints) or "make them first, or give --caption_extension",
    )


def _texts(images: Sequence[str], options: MergeOptions, file: str, outcome: Outcome) -> Iterator[tuple[str, str]]:
    """Images with their texts; those whose text cannot be read fail."""
    with progress_bar(len(images), "merging") as progress:
        for image in images:
            try:
                yield image, _read_text(image, options.caption_extension, file)
                outcome.done += 1
            except UserError as error:
                outcome.failed[image] = error.message
            progress.update()


def _read_text(image: str, ending: str, file: str) -> str:
    if not is_unicode(image):
        raise UserError("its path is not Unicode, which JSON cannot hold")
    return read_text(os.path.splitext(image)[0] + ending, file, ending).strip()


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _warn_of_second_keys(known: frozenset[str], merged: Mapping[str, str]) -> None:
    """New entries of images that have another, by a key of the other form: the path, or the name without extension."""
    others = {key: key for key in known - merged.keys() if not _is_path(key)}
    others |= {_stem(key): key for key in known - merged.keys() if _is_path(key)}
    twice = [
        f"{others[_stem(image)]} and {key}"
        for key, image in merged.items()
        if key not in known and _stem(image) in others and _is_path(others[_stem(image)]) != _is_path(key)
    ]
    if twice:
        logger.warning(
            "%s two entries now, it seems: %s; give --full_path to all scripts or to none",
            plural(len(twice), "image has", "images have"), listed(twice, _MAX_NAMES_IN_WARNING),
        )  # fmt: skip


def _is_path(key: str) -> bool:
    return "/" in key or os.sep in key
