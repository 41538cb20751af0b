"""The scan index (`cache_info`): sizes and captions of a folder, so that the next start reads only what has changed.

It is the file `INDEX_NAME` in the folder of images. Lines of JSON, in UTF-8: a header (format, version, `all_lines`:
whether captions have all lines of their files), then blocks of images sorted by name, each an object of columns, then
a trailer with the CRC-32 of everything before it. Our own format: the caches of other trainers cannot tell when an
image has changed.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import json
import logging
import operator
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from library.cli.atomic_files import atomic_path
from library.data.records import Size

logger = logging.getLogger(__name__)

INDEX_NAME = ".scan_index.jsonl"
MORE_LINES = "\n"

_FORMAT, _VERSION = "scan index", 2
_BLOCK = 1000  # images
_LONGEST_LINE = 2**28
# a file modified in the last moments can change again without a new mtime
_SETTLED_NS = 2 * 10**9


Pair = tuple[str, str | None]  # names of an image and of its caption file, None without one


class ScannedImage(NamedTuple):
    """What a scan reads from an image and its caption file."""

    size: Size  # after EXIF orientation
    mtime_ns: int
    num_bytes: int
    ctime_ns: int
    # None without a caption file, and the three below are 0 then; with `MORE_LINES` at its end where these are left out
    caption: str | None
    caption_mtime_ns: int
    caption_num_bytes: int
    caption_ctime_ns: int


class IndexHits(NamedTuple):
    """Index entries of the images asked for, in order; None for those that must be read."""

    images: list[ScannedImage | None]
    has_stale: bool  # entries that are outdated or of images that do not exist any more


_State = tuple[int, int, int, int, int, int]  # mtime, size and ctime of an image, then of its caption file
_Row = tuple[Pair | None, _State | None, ScannedImage | None]  # of the index
_UNKNOWN: _Row = (None, None, None)


class _Block(NamedTuple):
    pairs: list[Pair]
    states: list[_State]
    images: list[ScannedImage]


# column -> types of its values
_COLUMNS: dict[str, frozenset[type]] = {
    "names": frozenset((str,)),
    "caption_files": frozenset((str, type(None))),
    "widths": frozenset((int,)),
    "heights": frozenset((int,)),
    "mtimes_ns": frozenset((int,)),
    "num_bytes": frozenset((int,)),
    "ctimes_ns": frozenset((int,)),
    "captions": frozenset((str, type(None))),
    "caption_mtimes_ns": frozenset((int,)),
    "caption_num_bytes": frozenset((int,)),
    "caption_ctimes_ns": frozenset((int,)),
}


def read_index(folder: str, pairs: Sequence[Pair], all_lines: bool) -> IndexHits:
    """The index entries of the images of a folder: `pairs` of names of an image and its caption file, sorted.

    An entry is used only if mtime, size and ctime of both files are unchanged. A corrupt index is ignored, with a
    warning.
    """
    nothing = IndexHits([None] * len(pairs), False)
    path = os.path.join(folder, INDEX_NAME)
    try:
        with open(path, "rb") as file:
            header = _check(file)
            if header is None or header["all_lines"] is not all_lines:
                return nothing
            file.seek(0)
            return _match(pairs, _states(folder, pairs), _blocks(file))
    except FileNotFoundError:
        return nothing
    except OSError as error:
        logger.warning("the scan index %s cannot be read: %s", path, error.strerror)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        logger.warning("the scan index %s is corrupt and will be rebuilt (%s)", path, error)
    return nothing


def _check(file: Any) -> dict[str, Any] | None:
    """Checks the checksum in the trailer against all lines before it. The header; None in an index of before."""
    header = json.loads(file.readline(_LONGEST_LINE))
    if (header["format"], header["version"]) != (_FORMAT, _VERSION):
        if header["format"] == _FORMAT and header["version"] in range(_VERSION):
            return None
        raise ValueError("another format or version")
    file.seek(0)
    crc, line = 0, b""
    for next_line in file:
        crc, line = zlib.crc32(line, crc), next_line
    if json.loads(line)["crc32"] != crc:
        raise ValueError("wrong checksum")
    return header


def _blocks(file: Any) -> Iterator[_Block]:
    """The blocks of an index whose checksum is right, one at a time, so that the whole is never in memory."""
    next(file)
    last = ""
    for line in file:
        columns = json.loads(line)
        if "crc32" in columns:
            return
        for column, types in _COLUMNS.items():
            if not types.issuperset(map(type, columns[column])):
                raise ValueError(f"wrong {column}")
        names, files, widths, heights, *of_image, captions, caption_times, caption_num_bytes, caption_ctimes = map(
            columns.__getitem__, _COLUMNS
        )
        of_caption = (caption_times, caption_num_bytes, caption_ctimes)
        if not names or names[0] <= last or names != sorted(set(names)):
            raise ValueError("not sorted")
        last = names[-1]
        yield _Block(
            list(zip(names, files, strict=True)),
            list(zip(*of_image, *of_caption, strict=True)),
            list(map(ScannedImage, zip(widths, heights, strict=True), *of_image, captions, *of_caption)),
        )


_NOT_FOUND = (-1, -1, -1, -1, -1, -1)


def _states(folder: str, pairs: Sequence[Pair]) -> Iterator[_State]:
    # in one process: several block each other in one folder, and are not faster
    with _stat_in(folder) as stat_of:
        for name, caption_file in pairs:
            try:
                image = stat_of(name)
                if caption_file is None:
                    yield image.st_mtime_ns, image.st_size, image.st_ctime_ns, 0, 0, 0
                    continue
                caption = stat_of(caption_file)
            except OSError:
                yield _NOT_FOUND  # reading it will report the error
                continue
            yield (
                image.st_mtime_ns, image.st_size, image.st_ctime_ns,
                caption.st_mtime_ns, caption.st_size, caption.st_ctime_ns,
            )  # fmt: skip


@contextmanager
def _stat_in(folder: str) -> Iterator[Callable[[str], os.stat_result]]:
    """`os.stat` of names in a folder; where supported, relative to an open folder, which is faster."""
    if os.stat not in os.supports_dir_fd:
        yield lambda name: os.stat(os.path.join(folder, name))
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield functools.partial(os.stat, dir_fd=descriptor)
    finally:
        os.close(descriptor)


def _match(pairs: Sequence[Pair], states: Iterator[_State], blocks: Iterable[_Block]) -> IndexHits:
    images: list[ScannedImage | None] = []
    num_known = 0
    for block in blocks:
        num_known += len(block.pairs)
        end = bisect.bisect_right(pairs, block.pairs[-1][0], lo=len(images), key=operator.itemgetter(0))
        here = pairs[len(images) : end]
        own_rows = zip(block.pairs, block.states, block.images, strict=True)
        rows: Iterable[_Row] = own_rows
        if here != block.pairs:  # images were added or removed
            known = {pair[0]: (pair, state, each) for pair, state, each in own_rows}
            rows = (known.get(name, _UNKNOWN) for name, _ in here)
        images += [
            each if pair == known_pair and state == known_state else None
            # the states continue after this block, so `here` comes first and ends it
            for pair, state, (known_pair, known_state, each) in zip(here, states, rows)  # noqa: B905
        ]
    num_kept = len(images) - images.count(None)
    images += [None] * (len(pairs) - len(images))
    return IndexHits(images, num_kept < num_known)


def write_index(
    folder: str,
    pairs: Sequence[Pair],
    images: Sequence[ScannedImage | None],
    all_lines: bool,
    scanned_at_ns: int,
) -> None:
    """Writes the index of a folder: an entry for each of the `pairs`, sorted by name; None is skipped.

    `scanned_at_ns`: time before the files were read. A folder that is not writable is only a warning.
    """
    settled_before = scanned_at_ns - _SETTLED_NS
    entries = (
        (name, caption_file, *each.size, *each[1:])
        for (name, caption_file), each in zip(pairs, images, strict=True)
        if each is not None and max(each.mtime_ns, each.caption_mtime_ns) < settled_before
    )
    path = Path(folder) / INDEX_NAME
    try:
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            crc = 0
            for line in _lines(entries, all_lines):
                crc = zlib.crc32(line, crc)
                file.write(line)
            file.write(_line({"crc32": crc}))
    except OSError as error:
        logger.warning("the scan index %s cannot be written: %s", path, error.strerror)


def _lines(entries: Iterator[tuple[Any, ...]], all_lines: bool) -> Iterator[bytes]:
    """`entries`: the values of the columns, in their order; all of them are never in memory together."""
    yield _line({"format": _FORMAT, "version": _VERSION, "all_lines": all_lines})
    while rows := list(itertools.islice(entries, _BLOCK)):
        yield _line(dict(zip(_COLUMNS, zip(*rows, strict=True), strict=True)))


def _line(value: dict[str, Any]) -> bytes:
    # surrogates are the bytes of file names that are not UTF-8
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "surrogatepass") + b"\n"
