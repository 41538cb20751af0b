"""Where image records come from: folders of pictures with caption files."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from library.cli.errors import UserError, UserErrors
from library.data.captions import read_caption_file
from library.data.config import SubsetConfig
from library.data.pictures import IMAGE_ENDINGS, read_size
from library.data.records import ImageRecord

logger = logging.getLogger(__name__)

_MAX_NAMES_IN_ERROR = 200
_MAX_NAMES_IN_WARNING = 5


def scan_folder(subset: SubsetConfig, subset_index: int) -> list[ImageRecord]:
    """The pictures that lie directly in the subset's folder, with captions from the files beside them.

    Of the pictures only headers are read. Raises `UserError` with everything that is wrong.
    """
    entries = _list_folder(subset)
    names = sorted(name for name in entries if _is_picture_name(name))
    if not names:
        raise _no_pictures(subset, entries)
    problems: list[UserError] = []
    captions = _read_captions(subset, names, set(entries), problems)
    records = []
    for name in names:
        try:
            records.append(_make_record(subset, subset_index, name, captions.get(name, "")))
        except UserError as error:
            problems.append(error)
    if problems:
        raise UserErrors(problems)
    return records


def _is_picture_name(name: str) -> bool:
    # names with a dot in front are leftovers of file managers, such as ._photo.jpg
    return name.lower().endswith(IMAGE_ENDINGS) and not name.startswith(".")


def _list_folder(subset: SubsetConfig) -> list[str]:
    folder, place = subset.image_dir, f"{subset.place}: image_dir"
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if not entry.is_dir()]
    except FileNotFoundError:
        where = "" if os.path.isabs(folder) else f" (looked for in {os.getcwd()})"
        raise UserError(f"{place} {folder} does not exist{where}", hint="give the path of a folder") from None
    except NotADirectoryError:
        raise UserError(f"{place} {folder} is a file", hint="give the folder that holds the pictures") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise UserError(f"{place} {folder!r} cannot be read: {getattr(error, 'strerror', error)}") from None


def _no_pictures(subset: SubsetConfig, entries: list[str]) -> UserError:
    folder = Path(subset.image_dir)
    hint = f"put pictures ({' '.join(IMAGE_ENDINGS)}) directly into it"
    below = next((child.name for child in sorted(folder.iterdir()) if child.is_dir() and _holds_pictures(child)), None)
    if below is not None:
        hint = f"its folder {below} holds pictures: name that one, one subset for each folder"
    return UserError(
        f"{subset.place}: folder {subset.image_dir} holds no pictures ({len(entries)} other files)", hint=hint
    )


def _holds_pictures(folder: Path) -> bool:
    try:
        return any(_is_picture_name(name) for name in os.listdir(folder))
    except OSError:
        return False


def _read_captions(
    subset: SubsetConfig, names: list[str], entries: set[str], problems: list[UserError]
) -> dict[str, str]:
    captions: dict[str, str] = {}
    missing, empty = [], []
    for name in names:
        file = os.path.splitext(name)[0] + subset.caption_extension
        if file not in entries:
            missing.append(name)
            captions[name] = subset.class_tokens or ""
            continue
        try:
            captions[name] = read_caption_file(os.path.join(subset.image_dir, file))
        except UserError as error:
            problems.append(error)
            continue
        if not captions[name]:
            empty.append(file)
    if missing and not subset.class_tokens:
        problems.append(_captions_missing(subset, missing))
    elif missing:
        logger.info(
            "%s: %d of %d pictures have no %s file, their caption is %r",
            subset.image_dir, len(missing), len(names), subset.caption_extension, subset.class_tokens,
        )  # fmt: skip
    if empty:
        logger.warning("%s: %d empty captions: %s", subset.image_dir, len(empty), _some(empty, _MAX_NAMES_IN_WARNING))
    return captions


def _captions_missing(subset: SubsetConfig, names: list[str]) -> UserError:
    return UserError(
        f"{subset.place}: {len(names)} pictures in {subset.image_dir} have neither a {subset.caption_extension} "
        f"file nor class tokens: {_some(names, _MAX_NAMES_IN_ERROR)}",
        hint="write the captions, name their ending with --caption_extension, or give class_tokens "
        "(in a folder name, what follows <repeats>_)",
    )


def _some(names: list[str], limit: int) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def _make_record(subset: SubsetConfig, subset_index: int, name: str, caption: str) -> ImageRecord:
    path = os.path.join(subset.image_dir, name)
    try:
        status = os.stat(path)
    except OSError as error:
        raise UserError(f"picture {path} cannot be read: {error.strerror}") from None
    if status.st_size == 0:
        raise UserError(f"picture {path} is empty (0 bytes)", hint="remove it, or copy it there again")
    return ImageRecord(
        key=name,
        path=path,
        size=read_size(path),
        mtime_ns=status.st_mtime_ns,
        caption=caption,
        num_repeats=subset.num_repeats,
        subset_index=subset_index,
        is_reg=subset.is_reg,
    )


@dataclass(frozen=True)
class ConceptFolder:
    """A folder that describes itself by its name, `<repeats>_<class tokens>`."""

    path: str
    num_repeats: int
    class_tokens: str


def parse_concept_name(name: str) -> tuple[int, str] | None:
    """Repeats and class tokens of a folder name such as `10_sks dog`; None for a name that does not follow it."""
    number, _, tokens = name.partition("_")
    try:
        num_repeats = int(number)
    except ValueError:
        return None
    return (num_repeats, tokens) if num_repeats > 0 else None


def find_concept_folders(parent: str, flag: str) -> list[ConceptFolder]:
    """The folders `<repeats>_<class tokens>` in `parent`, which the user named with `flag`, sorted by name.

    Folders with other names are left out with a warning. Raises `UserError` if `parent` is no folder or holds none.
    """
    folder = Path(parent)
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"{flag} {parent} {kind}", hint="give a folder that holds folders such as 10_sks dog")
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
        message = f"{flag} {parent} holds no folder named <repeats>_<class tokens>"
        raise UserError(message, _hint(folder, flag, children))
    skipped = [name for name in children if parse_concept_name(name) is None]
    if skipped:
        logger.warning(
            "%s %s: folders not named <repeats>_<class tokens> are left out: %s", flag, parent, ", ".join(skipped)
        )
    return found


def _hint(folder: Path, flag: str, children: list[str]) -> str:
    """What was probably meant by a folder without concept folders, and what was found in it."""
    for name in children:
        try:
            grandchildren = [child.name for child in (folder / name).iterdir() if child.is_dir()]
        except OSError:
            continue
        if any(map(parse_concept_name, grandchildren)):
            return f"its folder {name} does: did you mean {flag} {folder / name}?"
    if _holds_pictures(folder):
        if parse_concept_name(folder.resolve().name) is not None:
            return f"it is such a folder itself: give the folder around it, {flag} {folder.resolve().parent}"
        return "it holds pictures itself: put them into a folder in it, named such as 10_sks dog"
    contents = ", ".join(children[:_MAX_NAMES_IN_WARNING]) or "no folders"
    return f"found {contents}; expected folders such as 10_sks dog (10 repeats, class tokens sks dog)"
