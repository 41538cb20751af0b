"""Scans the images of a metadata file: JSON of image key -> `caption`, `tags`, `train_resolution`.

An image key is a full path, a path relative to `image_dir`, or the stem of an image in `image_dir`. Without
`image_dir`, keys are relative to the folder of the metadata file. A relative key with a folder in it that is not
found there is relative to the working directory, as `--full_path` of the scripts in finetune/ writes them. Other keys
of an entry are ignored: they are those of other programs.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from library.cli.documents import no_such_path
from library.cli.errors import UserError, listed, plural, raise_together
from library.data.captions import first_line, has_more_lines, joiner
from library.data.config.config import SubsetConfig
from library.data.images.image_files import NoImages, UnreadableImage
from library.data.real_paths import RealPaths
from library.data.records import ImageRecord, LegacyNpz, Size
from library.data.scan.header_scan import Header, read_headers
from library.data.scan.legacy_npz import legacy_npz_path, original_size
from library.data.scan.listing import ImageFolders
from library.data.scan.metadata_entries import FORM, read_entries
from library.data.scan.scan_index import ScannedImage
from library.data.scan.scanner import scan_files

logger = logging.getLogger(__name__)

_MAX_NAMES_IN_ERROR = 200
_MAX_NAMES_IN_WARNING = 5
# how subsets that no dataset file describes were given
_FLAGS = {
    "--in_json": {"metadata_file": "--in_json", "image_dir": "--train_data_dir"},
    "IN_JSON": {"metadata_file": "IN_JSON", "image_dir": "TRAIN_DATA_DIR"},
    "--debug_dataset_before": {"metadata_file": "--debug_dataset_before", "image_dir": "--train_data_dir"},
}


@dataclass(frozen=True, slots=True)
class Entry:
    """The entry of one image."""

    key: str
    caption: str | None
    tags: str | None
    train_resolution: Size | None


@dataclass(frozen=True, slots=True)
class FoundImage:
    """The path of an entry's image, whether it exists or not."""

    entry: Entry
    path: str
    exists: bool
    legacy_npz: LegacyNpz | None


def scan_metadata(subset: SubsetConfig, subset_index: int, *, skip_unreadable: bool = False) -> list[ImageRecord]:
    """The images of the subset's metadata file, in its order.

    Only headers of images are read. An image with `train_resolution` in its entry and legacy .npz latents beside it
    gets `legacy_npz`, even if it does not exist any more. Raises `UserError` with all errors; with `skip_unreadable`,
    unreadable images are skipped with a warning.
    """
    problems: list[UserError] = []
    found = find_images_of_entries(subset, problems)
    captions = {each.entry.key: joined_caption(each.entry.caption, each.entry.tags, subset) for each in found}
    _warn_empty_captions(subset, captions)
    _warn_more_lines(subset, found)
    records = _make_records(subset, subset_index, found, captions, problems, skip_unreadable)
    raise_together(problems)
    if not records:
        raise UserError(f"{_named(subset)} describes no readable image", hint="repair the images it lists")
    return records


def find_images_of_entries(subset: SubsetConfig, problems: list[UserError]) -> list[FoundImage]:
    """The image of each entry of the subset's metadata file, whether it exists or not; of two for one image the first.

    Values that are not valid and keys that match several images are added to `problems`. Raises `UserError` where
    there is no such file or folder, `NoImages` for a file without entries.
    """
    _check_folder(subset)
    entries = _read_entries(subset, problems)
    return _without_duplicates(subset, _find_all(subset, entries, problems))


def _named(subset: SubsetConfig) -> str:
    """The metadata file as the user gave it."""
    return f"{_option(subset, 'metadata_file')} {subset.metadata_file}"


def _option(subset: SubsetConfig, key: str) -> str:
    """A key of the subset as the user gave it: a flag, or a key path in the dataset file."""
    flags = _FLAGS.get(subset.key_path)
    return f"{subset.key_path}.{key}" if flags is None else flags[key]


def _check_folder(subset: SubsetConfig) -> None:
    folder = subset.image_dir
    if folder is None or os.path.isdir(folder):
        return
    option = _option(subset, "image_dir")
    kind = "is a file" if os.path.exists(folder) else "does not exist"
    shown, hint = no_such_path(folder, "give the folder of images")
    raise UserError(f"{option} {shown} {kind}", hint=hint)


def _read_entries(subset: SubsetConfig, problems: list[UserError]) -> list[Entry]:
    document = read_entries(subset.metadata_file or "", _option(subset, "metadata_file"), problems)
    if not document and not problems:
        raise NoImages(f"{_named(subset)} describes no images", hint=FORM)
    return [_entry(key, value) for key, value in document.items()]


def _entry(key: str, value: Mapping[str, Any]) -> Entry:
    resolution = value.get("train_resolution")
    return Entry(key, value.get("caption"), value.get("tags"), None if resolution is None else tuple(resolution))


def _find_all(subset: SubsetConfig, entries: list[Entry], problems: list[UserError]) -> list[FoundImage]:
    folders = ImageFolders()
    found, ambiguous = [], []
    for entry in entries:
        paths = _candidates(entry.key, subset)
        hits = folders.find(paths[0]) or (folders.find(paths[1]) if len(paths) > 1 else [])
        if len(hits) > 1:
            names = ", ".join(map(os.path.basename, hits))
            ambiguous.append(f"{json.dumps(entry.key, ensure_ascii=False)} ({names})")
            continue
        path = hits[0] if hits else next((path for path in paths if folders.has_file(legacy_npz_path(path))), paths[0])
        legacy = None
        if entry.train_resolution is not None and folders.has_file(legacy_npz_path(path)):
            legacy = LegacyNpz(legacy_npz_path(path), entry.train_resolution)
        found.append(FoundImage(entry, path, bool(hits), legacy))
    if ambiguous:
        problems.append(
            UserError(
                f"{_named(subset)}: {plural(len(ambiguous), 'key matches', 'keys match')} several images: "
                f"{listed(ambiguous, _MAX_NAMES_IN_ERROR)}",
                hint="write the names of the images with their extensions",
            )
        )
    return found


def _candidates(key: str, subset: SubsetConfig) -> list[str]:
    """The possible paths of a key's image, one or two, the likelier first."""
    key = key.replace("\\", "/")  # as Windows writes paths
    base = subset.image_dir if subset.image_dir is not None else os.path.dirname(subset.metadata_file or "")
    paths = [os.path.normpath(os.path.join(base, key))]
    if "/" in key and not os.path.isabs(key):
        paths.append(os.path.normpath(key))
    return paths


def _without_duplicates(subset: SubsetConfig, found: list[FoundImage]) -> list[FoundImage]:
    first: dict[str, FoundImage] = {}
    real = RealPaths()
    duplicates = []
    for each in found:
        original = first.setdefault(real.file(each.path), each)
        if original is not each:
            duplicates.append(f"{each.entry.key} (same image as {original.entry.key})")
    if duplicates:
        logger.warning(
            "%s: skipping %s: %s",
            _named(subset), plural(len(duplicates), "duplicate entry", "duplicate entries"),
            listed(duplicates, _MAX_NAMES_IN_WARNING),
        )  # fmt: skip
    return list(first.values())


def joined_caption(caption: str | None, tags: str | None, subset: SubsetConfig) -> str | None:
    """Caption and tags of an entry, joined; None if it has neither."""
    if caption is None and tags is None:
        return None
    caption = (caption or "").strip()
    tags = first_line((tags or "").strip()).strip()
    lines = [first_line(caption).strip()]
    if subset.enable_wildcard:
        lines = [line.strip() for line in caption.replace("\r", "\n").split("\n") if line.strip()] or [""]
    if tags:
        lines = [f"{line}{joiner(subset.caption_separator)}{tags}" if line else tags for line in lines]
    return "\n".join(lines)


def _warn_empty_captions(subset: SubsetConfig, captions: Mapping[str, str | None]) -> None:
    empty = [key for key, caption in captions.items() if caption == ""]
    if empty:
        named, count = listed(empty, _MAX_NAMES_IN_WARNING), plural(len(empty), "empty caption")
        logger.warning("%s: %s: %s", _named(subset), count, named)
    missing = [key for key, caption in captions.items() if caption is None]
    if missing:
        logger.warning(
            '%s: %d of %s have neither caption nor tags, their caption is empty: %s; give each a "caption" or'
            ' "tags"', _named(subset), len(missing), plural(len(captions), "entry", "entries"),
            listed(missing, _MAX_NAMES_IN_WARNING),
        )  # fmt: skip


def _warn_more_lines(subset: SubsetConfig, found: list[FoundImage]) -> None:
    if subset.enable_wildcard:
        return
    longer = [each.entry.key for each in found if has_more_lines((each.entry.caption or "").encode())]
    if longer:
        logger.warning(
            "%s: only the first line of %s is used: %s; put captions on one line, or set enable_wildcard to"
            " draw one of the lines", _named(subset), plural(len(longer), "caption"),
            listed(longer, _MAX_NAMES_IN_WARNING),
        )  # fmt: skip


def _make_records(
    subset: SubsetConfig,
    subset_index: int,
    found: list[FoundImage],
    captions: Mapping[str, str | None],
    problems: list[UserError],
    skip_unreadable: bool,
) -> list[ImageRecord]:
    """Records of all images that exist or have legacy .npz latents; the errors of others are added to `problems`."""
    missing = [each for each in found if not each.exists and each.legacy_npz is None]
    if missing:
        problems.append(_images_not_found(subset, missing))
    headers = _read_headers([each.path for each in found if each.exists], subset.cache_info, skip_unreadable)
    root = root_folder(subset)
    records: list[ImageRecord] = []
    unreadable: list[UserError] = []
    for each in found:
        header = headers[each.path] if each.exists else _header_of_missing(each)
        if isinstance(header, UserError):
            (unreadable if skip_unreadable and isinstance(header, UnreadableImage) else problems).append(header)
        elif header is not None:
            records.append(make_record(each, header, root, subset, subset_index, captions[each.entry.key] or ""))
    if unreadable:
        logger.warning(
            "%s: skipping %s: %s", _named(subset), plural(len(unreadable), "unreadable image"),
            listed([error.message for error in unreadable], _MAX_NAMES_IN_ERROR),
            extra={"details": [error.message for error in unreadable]},  # for the page of --debug_dataset
        )  # fmt: skip
    return records


def root_folder(subset: SubsetConfig) -> str | None:
    """The folder whose images are identified by their paths in it, with a separator at its end."""
    return None if subset.image_dir is None else os.path.join(os.path.abspath(subset.image_dir), "")


def make_record(
    found: FoundImage,
    header: Header | ScannedImage,
    root: str | None,
    subset: SubsetConfig,
    subset_index: int = 0,
    caption: str = "",
) -> ImageRecord:
    """The record of an entry's image. `root`: the `root_folder` of the subset."""
    return ImageRecord(
        key=_identity(found.path, root),
        path=found.path,
        size=header.size,
        mtime_ns=header.mtime_ns,
        caption=caption,
        num_repeats=subset.num_repeats,
        subset_index=subset_index,
        is_reg=False,
        legacy_npz=found.legacy_npz,
        num_bytes=header.num_bytes,
        ctime_ns=header.ctime_ns,
    )


def _read_headers(
    paths: list[str], use_index: bool, skip_unreadable: bool
) -> Mapping[str, Header | ScannedImage | UserError]:
    """The header of each image, or its error, by path."""
    if not use_index:
        return dict(zip(paths, read_headers(paths), strict=True))
    names: dict[str, list[str]] = {}
    for path in sorted(paths):
        folder, name = os.path.split(path)
        names.setdefault(folder, []).append(name)
    headers: dict[str, Header | ScannedImage | UserError] = {}
    for folder, each in names.items():
        pairs = [(name, None) for name in each]
        scanned = scan_files(folder, pairs, all_lines=False, use_index=True, skip_unreadable=skip_unreadable)
        headers.update(zip((os.path.join(folder, name) for name in each), scanned, strict=True))
    return headers


def _header_of_missing(found: FoundImage) -> Header | UserError | None:
    """The header of an image that does not exist, from its legacy .npz latents; None without them."""
    if found.legacy_npz is None:
        return None
    try:
        size = original_size(found.legacy_npz.path) or found.legacy_npz.bucket
    except UserError as error:
        return error
    return Header(size, mtime_ns=0, num_bytes=0, ctime_ns=0)  # older than its latents


def _identity(path: str, root: str | None) -> str:
    """The path relative to the folder `root`, with "/"; for images elsewhere the name alone."""
    if root is not None:
        full = _absolute(path)
        if full.startswith(root):
            return full[len(root) :].replace(os.sep, "/")
    return os.path.basename(path)


def _images_not_found(subset: SubsetConfig, missing: list[FoundImage]) -> UserError:
    names = [each.entry.key for each in missing]
    where = subset.image_dir or os.path.dirname(subset.metadata_file or "") or "."
    option = _option(subset, "image_dir")
    hint = f"correct {option}" if subset.image_dir else f"give their folder with {option}"
    return UserError(
        f"{_named(subset)}: {plural(len(names), 'image')} not found: {listed(names, _MAX_NAMES_IN_ERROR)} (searched in"
        f" {where})",
        hint=f"{hint}, or create the metadata file again",
    )


def _absolute(path: str) -> str:
    """`os.path.abspath` of a normalised path, several times as fast."""
    return path if os.path.isabs(path) else os.path.join(os.getcwd(), path)
