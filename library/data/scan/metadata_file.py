"""Images described by a metadata file: a JSON table of image key -> `caption`, `tags`, `train_resolution`.

An image key is a full path, a path relative to `image_dir`, or the bare stem of an image in `image_dir`. Without
`image_dir`, keys count from the folder of the metadata file. A relative key with a folder in it that is not found so
counts from the current folder, as `--full_path` of the scripts in finetune/ writes them. Other keys of an entry are
those of other programs, and are ignored.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from library.cli.documents import read_json
from library.cli.errors import UserError, listed, raise_together
from library.data.buckets import LONGEST_SIDE
from library.data.captions import first_line
from library.data.config.config import SubsetConfig
from library.data.images.image_files import NoImages, UnreadableImage
from library.data.records import ImageRecord, PreparedLatents, Size
from library.data.scan.header_scan import Header, read_headers
from library.data.scan.legacy_npz import original_size, prepared_path
from library.data.scan.listing import ImageFolders
from library.data.scan.scan_index import ScannedImage
from library.data.scan.scanner import scan_files

logger = logging.getLogger(__name__)

_MAX_NAMES_IN_ERROR = 200
_MAX_NAMES_IN_WARNING = 5
_MAX_WRONG_ENTRIES = 50
_STAND_IN = "?"  # for a text that is not valid, which is reported: it is neither missing nor empty
_FLAGS = {"metadata_file": "--in_json", "image_dir": "--train_data_dir"}


@dataclass(frozen=True, slots=True)
class _Entry:
    """What the file says of one image."""

    key: str
    caption: str | None
    tags: str | None
    train_resolution: Size | None


@dataclass(frozen=True, slots=True)
class _Found:
    """Where an entry's image lies, or would lie."""

    entry: _Entry
    path: str
    exists: bool
    prepared: PreparedLatents | None


def scan_metadata(subset: SubsetConfig, subset_index: int, *, skip_unreadable: bool = False) -> list[ImageRecord]:
    """The images of the subset's metadata file, in its order.

    Of the images only headers are read. An image whose entry has a `train_resolution` and beside which lies a file
    of prepared latents gets `prepared`, one that is gone as well. Raises `UserError` with everything that is wrong;
    with `skip_unreadable`, images that cannot be read are left out with a warning.
    """
    _check_folder(subset)
    problems: list[UserError] = []
    entries = _read_entries(subset, problems)
    found = _without_repeated(subset, _find_all(subset, entries, problems))
    captions = {each.entry.key: _caption(each.entry, subset) for each in found}
    _warn_of_empty_captions(subset, captions)
    records = _make_records(subset, subset_index, found, captions, problems, skip_unreadable)
    raise_together(problems)
    if not records:
        raise UserError(f"{_named(subset)} describes no image that can be read", hint="mend the images it names")
    return records


def _named(subset: SubsetConfig) -> str:
    """The metadata file as the user gave it."""
    return f"{_option(subset, 'metadata_file')} {subset.metadata_file}"


def _option(subset: SubsetConfig, key: str) -> str:
    """How the user spelled a key of the subset: as a flag, or in the TOML file."""
    return _FLAGS[key] if subset.key_path.startswith("--") else f"{subset.key_path}.{key}"


def _check_folder(subset: SubsetConfig) -> None:
    folder = subset.image_dir
    if folder is None or os.path.isdir(folder):
        return
    place = _option(subset, "image_dir")
    kind = "is a file" if os.path.exists(folder) else "does not exist"
    raise UserError(f"{place} {folder} {kind}", hint="give the folder that holds the images")


def _read_entries(subset: SubsetConfig, problems: list[UserError]) -> list[_Entry]:
    document = read_json(subset.metadata_file or "", _option(subset, "metadata_file"))
    form = 'its form is {"image.png": {"caption": "a cat"}}'
    if not isinstance(document, dict):
        raise UserError(f"{_named(subset)} is no table", hint=form)
    if not document:
        raise NoImages(f"{_named(subset)} describes no images", hint=form)
    wrong: list[UserError] = []
    entries = [_entry(key, value, wrong) for key, value in document.items()]
    problems += (UserError(f"{_named(subset)}: {each.message}", each.hint) for each in wrong[:_MAX_WRONG_ENTRIES])
    if len(wrong) > _MAX_WRONG_ENTRIES:
        problems.append(
            UserError(
                f"{_named(subset)}: {len(wrong) - _MAX_WRONG_ENTRIES} more values are not valid",
                hint="correct the program that wrote the file",
            )
        )
    return entries


def _entry(key: str, value: Any, wrong: list[UserError]) -> _Entry:
    if not key or "\0" in key:
        hint = "give a path or the stem of an image"
        wrong.append(UserError(f"{_shown(key)} is no name of an image", hint))
    if not isinstance(value, dict):
        hint = 'give a table such as {"caption": ""}'
        wrong.append(UserError(f"{_shown(key)} = {_shown(value)} is not valid", hint))
        value = {"caption": _STAND_IN}
    values = {}
    for name, (is_valid, expected) in _ENTRY_KEYS.items():
        given = value.get(name)  # null is how some programs leave a value out
        if given is not None and not is_valid(given):
            wrong.append(UserError(f"{_shown(key)}.{name} = {_shown(given)} is not valid", hint=f"give {expected}"))
            given = None if name == "train_resolution" else _STAND_IN
        values[name] = given
    resolution = values["train_resolution"]
    return _Entry(key, values["caption"], values["tags"], None if resolution is None else tuple(resolution))


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
    "tags": (_is_text, "a text, the tags with commas between"),
    "train_resolution": (_is_size, "width and height in pixels, such as [512, 768]"),
}


def _find_all(subset: SubsetConfig, entries: list[_Entry], problems: list[UserError]) -> list[_Found]:
    folders = ImageFolders()
    found, ambiguous = [], []
    for entry in entries:
        paths = _candidates(entry.key, subset)
        hits = folders.find(paths[0]) or (folders.find(paths[1]) if len(paths) > 1 else [])
        if len(hits) > 1:
            names = ", ".join(map(os.path.basename, hits))
            ambiguous.append(f"{json.dumps(entry.key, ensure_ascii=False)} ({names})")
            continue
        path = hits[0] if hits else next((path for path in paths if folders.has_file(prepared_path(path))), paths[0])
        prepared = None
        if entry.train_resolution is not None and folders.has_file(prepared_path(path)):
            prepared = PreparedLatents(prepared_path(path), entry.train_resolution)
        found.append(_Found(entry, path, bool(hits), prepared))
    if ambiguous:
        problems.append(
            UserError(
                f"{_named(subset)}: {len(ambiguous)} keys fit several images: {listed(ambiguous, _MAX_NAMES_IN_ERROR)}",
                hint="write the names of the images with their endings",
            )
        )
    return found


def _candidates(key: str, subset: SubsetConfig) -> list[str]:
    """Where the image of a key may lie, one place or two, the likelier first."""
    key = key.replace("\\", "/")  # as Windows writes paths
    base = subset.image_dir if subset.image_dir is not None else os.path.dirname(subset.metadata_file or "")
    paths = [os.path.normpath(os.path.join(base, key))]
    if "/" in key and not os.path.isabs(key):
        paths.append(os.path.normpath(key))
    return paths


def _without_repeated(subset: SubsetConfig, found: list[_Found]) -> list[_Found]:
    first: dict[str, _Found] = {}
    repeated = []
    for each in found:
        original = first.setdefault(_absolute(each.path), each)
        if original is not each:
            repeated.append(f"{each.entry.key} (named {original.entry.key} before)")
    if repeated:
        logger.warning(
            "%s: %d entries are left out, their images are described twice: %s",
            _named(subset), len(repeated), listed(repeated, _MAX_NAMES_IN_WARNING),
        )  # fmt: skip
    return list(first.values())


def _caption(entry: _Entry, subset: SubsetConfig) -> str | None:
    """Caption and tags of an entry, joined; None where it has neither."""
    if entry.caption is None and entry.tags is None:
        return None
    caption = (entry.caption or "").strip()
    tags = first_line((entry.tags or "").strip()).strip()
    lines = [first_line(caption).strip()]
    if subset.enable_wildcard:
        lines = [line.strip() for line in caption.replace("\r", "\n").split("\n") if line.strip()] or [""]
    if tags:
        lines = [f"{line}{subset.caption_separator} {tags}" if line else tags for line in lines]
    return "\n".join(lines)


def _warn_of_empty_captions(subset: SubsetConfig, captions: Mapping[str, str | None]) -> None:
    empty = [key for key, caption in captions.items() if caption == ""]
    if empty:
        logger.warning("%s: %d empty captions: %s", _named(subset), len(empty), listed(empty, _MAX_NAMES_IN_WARNING))
    missing = [key for key, caption in captions.items() if caption is None]
    if missing:
        logger.warning(
            '%s: %d of %d entries have neither caption nor tags, their caption is empty: %s; give each a "caption" or'
            ' "tags"',
            _named(subset), len(missing), len(captions), listed(missing, _MAX_NAMES_IN_WARNING),
        )  # fmt: skip


def _make_records(
    subset: SubsetConfig,
    subset_index: int,
    found: list[_Found],
    captions: Mapping[str, str | None],
    problems: list[UserError],
    skip_unreadable: bool,
) -> list[ImageRecord]:
    """Records of all images that are there or have prepared latents; what is wrong with others goes to `problems`."""
    gone = [each for each in found if not each.exists and each.prepared is None]
    if gone:
        problems.append(_gone(subset, gone))
    headers = _read_headers([each.path for each in found if each.exists], subset.cache_info, skip_unreadable)
    root = None if subset.image_dir is None else os.path.join(os.path.abspath(subset.image_dir), "")
    records, bad = [], []
    for each in found:
        header = headers[each.path] if each.exists else _header_of_gone(each)
        if isinstance(header, UserError):
            (bad if skip_unreadable and isinstance(header, UnreadableImage) else problems).append(header)
        elif header is not None:
            records.append(
                ImageRecord(
                    key=_identity(each.path, root),
                    path=each.path,
                    size=header.size,
                    mtime_ns=header.mtime_ns,
                    caption=captions[each.entry.key] or "",
                    num_repeats=subset.num_repeats,
                    subset_index=subset_index,
                    is_reg=False,
                    prepared=each.prepared,
                )
            )
    if bad:
        logger.warning(
            "%s: %d images cannot be read and are left out: %s",
            _named(subset), len(bad), listed([error.message for error in bad], _MAX_NAMES_IN_ERROR),
            extra={"details": [error.message for error in bad]},  # for the page of --debug_dataset
        )  # fmt: skip
    return records


def _read_headers(
    paths: list[str], use_index: bool, skip_unreadable: bool
) -> Mapping[str, Header | ScannedImage | UserError]:
    """By path, the headers of images or what is wrong with them."""
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


def _header_of_gone(found: _Found) -> Header | UserError | None:
    """What prepared latents tell of an image that is gone; None without them."""
    if found.prepared is None:
        return None
    try:
        size = original_size(found.prepared.path) or found.prepared.bucket
    except UserError as error:
        return error
    return Header(size, mtime_ns=0, num_bytes=0)  # no image is newer than they are


def _identity(path: str, root: str | None) -> str:
    """The path below the folder `root`, with "/"; of images elsewhere the name, as if their folder were `root`."""
    if root is not None:
        full = _absolute(path)
        if full.startswith(root):
            return full[len(root) :].replace(os.sep, "/")
    return os.path.basename(path)


def _gone(subset: SubsetConfig, gone: list[_Found]) -> UserError:
    names = [each.entry.key for each in gone]
    where = subset.image_dir or os.path.dirname(subset.metadata_file or "") or "."
    option = _option(subset, "image_dir")
    hint = f"correct {option}" if subset.image_dir else f"name their folder with {option}"
    return UserError(
        f"{_named(subset)}: {len(names)} images are not there: {listed(names, _MAX_NAMES_IN_ERROR)} "
        f"(looked for in {where})",
        hint=f"{hint}, or make the metadata anew",
    )


def _absolute(path: str) -> str:
    """As `os.path.abspath`, of a path that is normal already, several times as fast."""
    return path if os.path.isabs(path) else os.path.join(os.getcwd(), path)
