"""Scans a folder: reads image headers and caption files in several processes, or takes them from the scan index."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Sequence

from library.cli.errors import UserError, UserErrors
from library.data.captions import caption_from_bytes, has_more_lines
from library.data.images.image_files import UnreadableImage
from library.data.scan.header_scan import Header, header_or_error
from library.data.scan.scan_index import MORE_LINES, Pair, ScannedImage, read_index, write_index
from library.data.scan.scan_pool import POOL_FROM, map_in_chunks

_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)

Scanned = ScannedImage | UserError


def scan_files(
    folder: str,
    pairs: Sequence[Pair],
    *,
    all_lines: bool,
    use_index: bool = False,
    skip_unreadable: bool = False,
    pool_from: int = POOL_FROM,
) -> list[Scanned]:
    """Size and caption, or the error, of each of the `pairs`, which are sorted by the name of the image.

    `all_lines`: as for `read_caption_file`. `use_index`: use the folder's scan index, and update it unless a file has
    an error (with `skip_unreadable`, a caption file). Errors are `UnreadableImage`, `UserError` for a caption or a
    missing reader, or `UserErrors` of both.
    """
    read = functools.partial(_read_pairs, os.path.join(folder, ""), all_lines)
    if not use_index:
        return list(map_in_chunks(read, pairs, pool_from))
    started = time.time_ns()
    known, has_stale = read_index(folder, pairs, all_lines)
    unknown = [pair for pair, each in zip(pairs, known, strict=True) if each is None]
    scanned = list(map_in_chunks(read, unknown, pool_from))
    in_turn = iter(scanned)
    found = [next(in_turn) if each is None else each for each in known]
    has_changes = has_stale or any(isinstance(each, ScannedImage) for each in scanned)
    tolerated = (ScannedImage, UnreadableImage) if skip_unreadable else ScannedImage
    if has_changes and all(isinstance(each, tolerated) for each in scanned):
        write_index(
            folder, pairs, [each if isinstance(each, ScannedImage) else None for each in found], all_lines, started
        )
    return found


def _read_pairs(folder: str, all_lines: bool, pairs: Sequence[Pair]) -> list[Scanned]:
    return [_read_pair(folder, all_lines, name, caption_file) for name, caption_file in pairs]


def _read_pair(folder: str, all_lines: bool, name: str, caption_file: str | None) -> Scanned:
    header = header_or_error(folder + name)
    caption: tuple[str | None, int, int, int] = (None, 0, 0, 0)
    if caption_file is not None:
        try:
            caption = _read_caption(folder + caption_file, all_lines)
        except UserError as error:
            return UserErrors([header, error]) if isinstance(header, UserError) else error
    if isinstance(header, Header):
        return ScannedImage(header.size, header.mtime_ns, header.num_bytes, header.ctime_ns, *caption)
    return header


def _read_caption(path: str, all_lines: bool) -> tuple[str, int, int, int]:
    """A caption, with mtime, size and ctime of its file."""
    try:
        descriptor = os.open(path, _OPEN_FLAGS)
        try:
            status = os.fstat(descriptor)
            content = os.read(descriptor, status.st_size)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UserError(
            f"caption file {path} cannot be read: {error.strerror}", hint="make it readable, or remove it"
        ) from None
    caption = caption_from_bytes(content, path, all_lines)
    if not all_lines and has_more_lines(content):
        caption += MORE_LINES
    return caption, status.st_mtime_ns, status.st_size, status.st_ctime_ns
