"""Reads the headers of many image files: their sizes, and which files are unreadable or truncated."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from library.cli.errors import UserError
from library.data.images.image_files import UnreadableImage, opened_image, read_size
from library.data.images.image_headers import HEAD_LENGTH, Read, seems_truncated, size_from_head
from library.data.records import ShardMember, Size
from library.data.scan.scan_pool import POOL_FROM, map_in_chunks

_TAIL_LENGTH = 12  # bytes, enough to see whether an image is truncated
_BLOCK = 2**20
_JPEG_END = b"\xff\xd9"
_AFTER_THUMBNAIL = 2**16 + HEAD_LENGTH  # a thumbnail in EXIF data has its own end marker
# a pipe named like an image must not block
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True, slots=True)
class Header:
    """What a scan reads from an image file."""

    size: Size  # after EXIF orientation
    mtime_ns: int
    num_bytes: int
    ctime_ns: int


def read_headers(paths: Sequence[str], pool_from: int = POOL_FROM) -> list[Header | UserError]:
    """The headers of image files, in order, or the error of each.

    That is an `UnreadableImage` for a file that is not found, empty, or corrupt or truncated as far as its header and
    end show, and a plain `UserError` if a reader must be installed. `pool_from`: number of files from which several
    processes read them.
    """
    return list(map_in_chunks(_read_chunk, paths, pool_from))


def _read_chunk(paths: Sequence[str]) -> list[Header | UserError]:
    return [header_or_error(path) for path in paths]


def header_or_error(path: str) -> Header | UserError:
    """As `read_header`, giving the error instead of raising it."""
    try:
        return read_header(path)
    except UserError as error:
        return error


def read_header(path: str) -> Header:
    """The header of one image file. Raises as `read_headers` says."""
    try:
        descriptor = os.open(path, _OPEN_FLAGS)
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise _unreadable(path, error) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableImage(f"image {path} is not a file", hint="remove it from the folder")
        if status.st_size == 0:
            raise UnreadableImage(f"image {path} is empty (0 bytes)", hint="remove it or copy it again")
        head = os.read(descriptor, HEAD_LENGTH)
        read = buffered(lambda offset, length: _read_at(descriptor, offset, length), head)
        size = size_from_head(head, read)
        is_truncated = lacks_end(head, read, status.st_size)
    except OSError as error:
        raise _unreadable(path, error) from None
    finally:
        os.close(descriptor)
    if is_truncated:
        check_decodes(path)  # it is only likely: decoding decides
    return Header(size or read_size(path), status.st_mtime_ns, status.st_size, status.st_ctime_ns)


def _unreadable(path: str, error: Exception) -> UnreadableImage:
    reason = getattr(error, "strerror", None) or error
    return UnreadableImage(f"image {path} cannot be read: {reason}", hint="repair it, or remove it from the folder")


def _read_at(descriptor: int, offset: int, length: int) -> bytes:
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, length)


def buffered(read_at: Read, head: bytes) -> Read:
    """Reads anywhere in an image, keeping the last block, since headers are walked through in order."""
    start, block = 0, head

    def read(offset: int, length: int) -> bytes:
        nonlocal start, block
        if not (start <= offset and offset + length <= start + len(block)):
            start, block = offset, read_at(offset, max(length, HEAD_LENGTH))
        return block[offset - start : offset - start + length]

    return read


def lacks_end(head: bytes, read: Read, num_bytes: int) -> bool:
    """Whether an image of `num_bytes` with this head seems to be truncated: decoding it decides."""
    tail = head[-_TAIL_LENGTH:] if num_bytes <= len(head) else read(num_bytes - _TAIL_LENGTH, _TAIL_LENGTH)
    return seems_truncated(head, tail, num_bytes) and not _has_end(head, read, num_bytes)


def _has_end(head: bytes, read: Read, num_bytes: int) -> bool:
    """Whether a PNG or JPEG image has its end somewhere before the end of the file, followed by other data."""
    if head.startswith(b"\x89PNG"):
        return _has_png_end(read, num_bytes)
    if head.startswith(b"\xff\xd8\xff"):
        return _has_jpeg_end(read)
    return False


def _has_png_end(read: Read, num_bytes: int) -> bool:
    offset = 8
    while offset + 12 <= num_bytes:
        head = read(offset, 8)
        if len(head) < 8:
            return False
        if head[4:] == b"IEND":
            return True
        offset += 12 + int.from_bytes(head[:4], "big")
    return False


def _has_jpeg_end(read: Read) -> bool:
    """Whether there is an end marker. Compressed data cannot hold one: ISO/IEC 10918-1, B.1.1.5."""
    offset, last = _AFTER_THUMBNAIL, b""
    while block := read(offset, _BLOCK):
        if _JPEG_END in last + block:
            return True
        offset, last = offset + len(block), block[-1:]
    return False


def check_decodes(path: str, member: ShardMember | None = None) -> None:
    """Raises `UnreadableImage` unless the image can be decoded."""
    with opened_image(path, member) as image:
        image.load()
