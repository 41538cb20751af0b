"""Scans folders of images with caption files, and their mask images; finds folders <repeats>_<class tokens>."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Literal

from library.cli.documents import no_such_path
from library.cli.errors import UserError, UserErrors, listed, plural, raise_together
from library.data.config.config import SubsetConfig
from library.data.images.face_names import split_face_name
from library.data.images.image_files import IMAGE_ENDINGS, NoImages, UnreadableImage, mask_size_problem
from library.data.records import ImageRecord, Size
from library.data.scan.header_scan import read_headers
from library.data.scan.listing import is_folder, is_image_name
from library.data.scan.scan_index import MORE_LINES, Pair, ScannedImage
from library.data.scan.scanner import Scanned, scan_files
from library.data.scan.shard_paths import are_shards

logger = logging.getLogger(__name__)

_MAX_NAMES_IN_ERROR = 200
_MAX_NAMES_IN_WARNING = 5
_CAPTION_ENDINGS = (".txt", ".caption")  # those that captioning programs write


def scan_folder(subset: SubsetConfig, subset_index: int, *, skip_unreadable: bool = False) -> list[ImageRecord]:
    """The images directly in the subset's folder, sorted by name, with captions from the files beside them.

    Only headers of images are read; with `cache_info` only what has changed since the last scan. `skip_unreadable`:
    unreadable images are skipped, with a warning. Raises `UserError` with all errors, `NoImages` if there are none.
    """
    entries = _list_folder(subset)
    names = sorted(filter(is_image_name, entries))
    if not names:
        raise _no_images(subset, entries)
    pairs = _pair_with_captions(names, entries, subset.caption_extension)
    other_endings = _other_endings(pairs, entries)
    del entries  # as large as everything kept of the images
    scanned = scan_files(
        _image_dir(subset),
        pairs,
        all_lines=subset.enable_wildcard,
        use_index=subset.cache_info,
        skip_unreadable=skip_unreadable,
    )
    if skip_unreadable:
        pairs, scanned = _skip_unreadable(subset, pairs, scanned)
    raise_together(each for each in scanned if isinstance(each, UserError))
    _report_missing_captions(subset, pairs, other_endings)
    images = [each for each in scanned if isinstance(each, ScannedImage)]
    del scanned
    _warn_empty_captions(subset, pairs, images)
    _warn_more_lines(subset, pairs, images)
    return _make_records(subset, subset_index, pairs, images)


def _image_dir(subset: SubsetConfig) -> str:
    assert subset.image_dir is not None  # a subset without a metadata file has one
    return subset.image_dir


def with_masks(subset: SubsetConfig, records: list[ImageRecord], *, skip_unreadable: bool = False) -> list[ImageRecord]:
    """The records, each with the mask image of the same stem.

    Raises `UserError` with the images that have none, and with all masks that cannot be read or have another aspect
    ratio than their image; with `skip_unreadable`, images with an unreadable mask are skipped, with a warning.
    """
    folder = subset.conditioning_data_dir
    if folder is None:
        return records
    names = sorted(filter(is_image_name, _list_folder(subset, "conditioning_data_dir")), reverse=True)
    by_stem = {_stem(name): name for name in names}
    missing = [record.key for record in records if _stem(record.key) not in by_stem]
    if missing:
        raise UserError(
            f"{_named(subset, 'conditioning_data_dir')} {folder}: no mask found for {plural(len(missing), 'image')}:"
            f" {listed(missing, _MAX_NAMES_IN_WARNING)}",
            hint="add a mask image of the same name for each: white areas are trained, black ones are not",
        )
    masked = [replace(record, mask_path=os.path.join(folder, by_stem[_stem(record.key)])) for record in records]
    headers = read_headers([os.path.join(folder, by_stem[_stem(record.key)]) for record in records])
    problems = [
        header if isinstance(header, UserError) else mask_size_problem(record.mask_path or "", header.size, record.size)
        for record, header in zip(masked, headers, strict=True)
    ]
    unreadable = [each.message for each in problems if isinstance(each, UnreadableImage)]
    if skip_unreadable and unreadable:
        logger.warning(
            "%s %s: skipping %s with unreadable masks: %s", _named(subset, "conditioning_data_dir"), folder,
            plural(len(unreadable), "image"), listed(unreadable, _MAX_NAMES_IN_WARNING),
        )  # fmt: skip
        kept = [not isinstance(each, UnreadableImage) for each in problems]
        masked, problems = list(compress(masked, kept)), list(compress(problems, kept))
    raise_together(each for each in problems if each is not None)
    sizes = [header.size for header in headers if not isinstance(header, UserError)]  # of all that are left
    scaled = [record.key for record, size in zip(masked, sizes, strict=True) if size != record.size]
    if scaled:
        logger.info(
            "%s %s: %s of another size than the image, and scaled: %s", _named(subset, "conditioning_data_dir"), folder,
            plural(len(scaled), "mask is", "masks are"), listed(scaled, _MAX_NAMES_IN_WARNING),
        )  # fmt: skip
    return masked


def _stem(name: str) -> str:
    """The name of an image file without its extension, which it has."""
    return name[: name.rindex(".")]


_FolderKey = Literal["image_dir", "conditioning_data_dir"]


def _named(subset: SubsetConfig, key: _FolderKey) -> str:
    """How the user gave a folder of the subset."""
    if key == "conditioning_data_dir" and subset.key_path.startswith("--"):
        return f"--{key}"
    return f"{subset.key_path}: {key}"


def _list_folder(subset: SubsetConfig, key: _FolderKey = "image_dir") -> set[str]:
    folder, named = getattr(subset, key), _named(subset, key)
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if not is_folder(entry)}
    except FileNotFoundError:
        where = "" if os.path.isabs(folder) else f" (searched in {os.getcwd()})"
        shown, hint = no_such_path(folder, _shards_hint(named, folder) or "give the path of a folder")
        raise UserError(f"{named} {shown} does not exist{where}", hint=hint) from None
    except NotADirectoryError:
        hint = _shards_hint(named, folder) or "give the folder of images"
        raise UserError(f"{named} {folder} is a file", hint=hint) from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise UserError(f"{named} {folder!r} cannot be read: {getattr(error, 'strerror', error)}") from None


def _shards_hint(named: str, folder: str) -> str | None:
    """What to do where shards are given as a folder of images. `named`: how the user gave it."""
    if not are_shards(folder):
        return None
    if named.startswith("--train_data_dir"):
        return "give tar shards with --shards instead"
    return "tar shards are given in a dataset file, as shards instead of image_dir"


def _no_images(subset: SubsetConfig, entries: set[str]) -> NoImages:
    folder = Path(_image_dir(subset))
    hint = f"put images ({' '.join(IMAGE_ENDINGS)}) directly in it"
    below = next((child.name for child in sorted(folder.iterdir()) if child.is_dir() and _contains_images(child)), None)
    if below is not None:
        is_concept = subset.key_path.startswith("--")
        remedy = "move them up into it" if is_concept else "give that one, one subset for each folder"
        hint = f"its subfolder {below} contains images: {remedy}"
    else:
        hint = _shards_hint(_named(subset, "image_dir"), str(folder)) or hint
    return NoImages(
        f"{subset.key_path}: folder {subset.image_dir} contains no images ({plural(len(entries), 'other file')})",
        hint=hint,
    )


def _contains_images(folder: Path) -> bool:
    try:
        return any(map(is_image_name, os.listdir(folder)))
    except OSError:
        return False


def _pair_with_captions(names: Sequence[str], entries: set[str], extension: str) -> list[Pair]:
    """Each image's name with that of its caption file: the same stem, or the stem without its face numbers."""
    pairs = []
    for name in names:
        stem = _stem(name)
        file: str | None = stem + extension
        if file not in entries:
            face = split_face_name(stem)
            file = face[0] + extension if face is not None and face[0] + extension in entries else None
        pairs.append((name, file))
    return pairs


def _skip_unreadable(
    subset: SubsetConfig, pairs: list[Pair], scanned: list[Scanned]
) -> tuple[list[Pair], list[Scanned]]:
    unreadable = [index for index, each in enumerate(scanned) if _is_unreadable(each)]
    if not unreadable:
        return pairs, scanned
    names = listed([pairs[index][0] for index in unreadable], _MAX_NAMES_IN_ERROR)
    if len(unreadable) == len(pairs):
        raise UserError(
            f"{subset.key_path}: none of {plural(len(pairs), 'image')} in {subset.image_dir} can be read: {names}",
            hint="no readable images: replace or repair them",
        )
    logger.warning(
        "%s: skipping %s: %s", subset.image_dir, plural(len(unreadable), "unreadable image"), names,
        extra={"details": [str(scanned[index]) for index in unreadable]},  # for the page of --debug_dataset
    )  # fmt: skip
    skipped = set(unreadable)
    kept = [index for index in range(len(pairs)) if index not in skipped]
    return [pairs[index] for index in kept], [scanned[index] for index in kept]


def _is_unreadable(scanned: Scanned) -> bool:
    errors = scanned.errors if isinstance(scanned, UserErrors) else (scanned,)
    return any(isinstance(error, UnreadableImage) for error in errors)


def _other_endings(pairs: Sequence[Pair], entries: set[str]) -> dict[str, int]:
    """The usual extensions of caption files found beside images that lack one, and how many there are."""
    stems = [_stem(name) for name, file in pairs if file is None]
    counts = {ending: sum(stem + ending in entries for stem in stems) for ending in _CAPTION_ENDINGS}
    return {ending: count for ending, count in counts.items() if count}


def _report_missing_captions(subset: SubsetConfig, pairs: Sequence[Pair], other_endings: Mapping[str, int]) -> None:
    missing = [name for name, file in pairs if file is None]
    if not missing:
        return
    key = "--caption_extension" if subset.key_path.startswith("--") else "caption_extension"
    others = " and ".join(f"{count} have a {ending} file" for ending, count in other_endings.items())
    others = f"{others}, which is not read: set {key} to read it"
    if subset.class_tokens and other_endings:
        logger.warning(
            "%s: %d of %s in %s have the class tokens %r as caption, as they have no %s file; %s",
            subset.key_path, len(missing), plural(len(pairs), "image"), subset.image_dir, subset.class_tokens,
            subset.caption_extension, others,
        )  # fmt: skip
        return
    if subset.class_tokens:
        logger.info(
            "%s: the caption of %d of %s is the class tokens %r",
            subset.image_dir, len(missing), plural(len(pairs), "image"), subset.class_tokens,
        )  # fmt: skip
        return
    hint = others if other_endings else f"set {key} to the extension of the caption files, if there are any"
    logger.warning(
        "%s: %d of %s in %s have no %s file and no class tokens, their caption is empty: %s; %s",
        subset.key_path, len(missing), plural(len(pairs), "image"), subset.image_dir, subset.caption_extension,
        listed(missing, _MAX_NAMES_IN_WARNING), hint,
    )  # fmt: skip


def _warn_empty_captions(subset: SubsetConfig, pairs: Sequence[Pair], images: Sequence[ScannedImage]) -> None:
    empty = [
        file
        for (_, file), each in zip(pairs, images, strict=True)
        if file is not None and each.caption in ("", MORE_LINES)
    ]
    if empty:
        named, count = listed(empty, _MAX_NAMES_IN_WARNING), plural(len(empty), "empty caption")
        logger.warning("%s: %s: %s", subset.image_dir, count, named)


def _warn_more_lines(subset: SubsetConfig, pairs: Sequence[Pair], images: Sequence[ScannedImage]) -> None:
    longer = [
        file
        for (_, file), each in zip(pairs, images, strict=True)
        if file and (each.caption or "").endswith(MORE_LINES)
    ]
    if longer:
        logger.warning(
            "%s: only the first line of %s is used: %s; put captions on one line, or set enable_wildcard"
            " to draw one of the lines", subset.image_dir, plural(len(longer), "caption file"),
            listed(longer, _MAX_NAMES_IN_WARNING),
        )  # fmt: skip


def _make_records(
    subset: SubsetConfig, subset_index: int, pairs: list[Pair], images: list[ScannedImage]
) -> list[ImageRecord]:
    """Empties both lists, so that no image is in memory twice."""
    folder, without_file = os.path.join(_image_dir(subset), ""), subset.class_tokens or ""
    sizes: dict[Size, Size] = {}  # one object per size: there are few sizes and many images
    num_repeats, is_reg = subset.num_repeats, subset.is_reg
    pairs.reverse()
    images.reverse()
    return [
        ImageRecord(
            name,
            folder + name,
            sizes.setdefault(image.size, image.size),
            image.mtime_ns,
            without_file if image.caption is None else image.caption.removesuffix(MORE_LINES),
            num_repeats,
            subset_index,
            is_reg,
            num_bytes=image.num_bytes,
            ctime_ns=image.ctime_ns,
        )
        for (name, _), image in _taken(pairs, images)
    ]


def _taken(pairs: list[Pair], images: list[ScannedImage]) -> Iterator[tuple[Pair, ScannedImage]]:
    while images:
        yield pairs.pop(), images.pop()


@dataclass(frozen=True)
class ConceptFolder:
    """A folder named `<repeats>_<class tokens>`."""

    path: str
    num_repeats: int
    class_tokens: str


def parse_concept_name(name: str) -> tuple[int, str] | None:
    """Repeats and class tokens of a folder name such as `10_sks dog`; None for any other name."""
    number, _, tokens = name.partition("_")
    try:
        num_repeats = int(number)
    except ValueError:
        return None
    return (num_repeats, tokens) if num_repeats > 0 else None


def find_concept_folders(parent: str, flag: str) -> list[ConceptFolder]:
    """The folders `<repeats>_<class tokens>` in `parent`, which the user gave with `flag`, sorted by name.

    Folders with other names are skipped with a warning. Raises `UserError` if `parent` is not a folder or has none.
    """
    folder = Path(parent)
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "does not exist"
        otherwise = "give a folder with subfolders such as 10_sks dog"
        shown, hint = no_such_path(parent, _shards_hint(flag, parent) or otherwise)
        raise UserError(f"{flag} {shown} {kind}", hint=hint)
    try:
        children = sorted(child.name for child in folder.iterdir() if child.is_dir())
    except OSError as error:
        raise UserError(f"{flag} {parent} cannot be read: {error.strerror}") from None
    found = []
    for name in children:
        parsed = parse_concept_name(name)
        if parsed is not None:
            found.append(ConceptFolder(os.path.join(parent, name), *parsed))
    if not found:
        message = f"{flag} {parent} has no subfolder named <repeats>_<class tokens>"
        raise UserError(message, _hint(folder, flag, children))
    skipped = [name for name in children if parse_concept_name(name) is None]
    if skipped:
        logger.warning(
            "%s %s: skipping folders not named <repeats>_<class tokens>: %s", flag, parent, ", ".join(skipped)
        )
    return found


def _hint(folder: Path, flag: str, children: list[str]) -> str:
    """What the user probably meant by a folder without concept folders, and what was found in it."""
    for name in children:
        try:
            grandchildren = [child.name for child in (folder / name).iterdir() if child.is_dir()]
        except OSError:
            continue
        if any(map(parse_concept_name, grandchildren)):
            return f"its subfolder {name} has: did you mean {flag} {folder / name}?"
    if _contains_images(folder):
        if parse_concept_name(folder.resolve().name) is not None:
            return f"it is such a folder itself: give its parent folder, {flag} {folder.resolve().parent}"
        return "it contains images itself: move them to a subfolder with a name such as 10_sks dog"
    if not children and (hint := _shards_hint(flag, str(folder))):
        return hint
    contents = ", ".join(children[:_MAX_NAMES_IN_WARNING]) or "no subfolders"
    return f"found {contents}; expected folders such as 10_sks dog (10 repeats, class tokens sks dog)"
