"""Reads a tar shard once: where its images lie, their sizes, and their captions.

Files are samples as in WebDataset: of one name up to the first dot behind the last slash. An image's caption is the
file of its sample with the caption extension, or else `.txt`, `.caption`, or `caption` and `tags` in `.json`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, NamedTuple

from library.cli.errors import UserError, UserErrors, listed
from library.data.images.image_files import IMAGE_ENDINGS, UnreadableImage, read_size
from library.data.images.image_headers import HEAD_LENGTH, size_from_head
from library.data.records import Shard, ShardMember, Size
from library.data.scan.header_scan import buffered, check_decodes, lacks_end
from library.data.storage import opened_shard

if TYPE_CHECKING:
    import tarfile

Caption = str | list[str | None] | None  # all of a text file; caption and tags of JSON; nothing

_KEY = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")
_META = re.compile(r"__[^/]*__($|/)")  # not samples
_MORE_CAPTIONS = (".txt", ".caption", ".json")
_LONGEST_TEXT = 2**24
_BLOCK = 512  # of a tar file
_MAX_NAMES = 5
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}


class ShardImage(NamedTuple):
    """What a scan reads of an image in a shard."""

    name: str
    offset: int
    num_bytes: int
    size: Size | None  # after EXIF orientation; None for an image that cannot be read
    caption: Caption
    caption_name: str | None  # of the member that holds the caption


@dataclass
class ShardContents:
    """What a scan reads of a shard."""

    identity: str  # of its members: names, sizes and times, and the heads of its images
    images: list[ShardImage]
    without_image: list[str]  # names of samples
    unreadable: dict[str, UserError] = field(default_factory=dict)  # by name of the image


def member_path(shard: str, name: str) -> str:
    """How a member of a shard is shown."""
    return f"{shard}::{name}"


def read_shard(shard: Shard, caption_extension: str) -> ShardContents | UserError:
    """The contents of a shard, whose `identity` is not known yet, or what is wrong with it."""
    import tarfile  # not needed for other images, nor for help and errors of options

    try:
        with opened_shard(shard.path) as file:
            return _Reader(shard, file, caption_extension).read()
    except tarfile.TarError as error:
        return _damaged(shard.path, str(error))
    except OSError as error:
        return UserError(f"shard {shard.path} cannot be read: {error.strerror or error}", hint="make it readable")
    except UserError as error:
        return error


def _damaged(path: str, reason: str) -> UserError:
    return UserError(f"shard {path} is truncated or no tar file: {reason}", hint="copy or write it again")


def image_size(shard: Shard, file: IO[bytes], name: str, span: tuple[int, int]) -> tuple[Size, bytes]:
    """Size and head of the image in a span (offset, length) of a shard. Raises `UserError` for an unreadable one."""
    offset, num_bytes = span
    path = member_path(shard.path, name)

    def read_at(start: int, length: int) -> bytes:
        file.seek(offset + start)
        return file.read(max(0, min(length, num_bytes - start)))

    if not num_bytes:
        raise UnreadableImage(f"image {path} is empty (0 bytes)", hint="write the shard without it")
    head = read_at(0, HEAD_LENGTH)
    read, member = buffered(read_at, head), ShardMember(shard, offset, num_bytes)
    size = size_from_head(head, read)
    if lacks_end(head, read, num_bytes):
        check_decodes(path, member)
    return size or read_size(path, member), head


class _Reader:
    """Walks through a tar file once."""

    def __init__(self, shard: Shard, file: IO[bytes], caption_extension: str):
        self._shard = shard
        self._file = file
        # in the order in which they are looked for
        self._captions = tuple(dict.fromkeys((caption_extension, *_MORE_CAPTIONS)))
        self._digest = hashlib.blake2b(digest_size=16)
        self._images: dict[str, list[ShardImage]] = {}  # by sample
        self._texts: dict[str, dict[str, tuple[str, bytes]]] = {}  # by sample and ending
        self._names: set[str] = set()
        self._samples: dict[str, None] = {}
        self._unreadable: dict[str, UserError] = {}

    def read(self) -> ShardContents:
        start = self._file.read(6)
        program = next((each for magic, each in _COMPRESSED.items() if start.startswith(magic)), None)
        if program is not None:
            raise UserError(
                f"shard {self._shard.path} is compressed: single images cannot be read from it",
                hint=f"decompress it with {program}; images are compressed already",
            )
        for info in self._members():
            self._add(info)
        self._check_images()
        problems: list[UserError] = []
        images = [self._with_caption(key, of_sample[0], problems) for key, of_sample in self._images.items()]
        if problems:
            raise UserErrors(problems)
        without = [key for key in self._samples if key not in self._images]
        return ShardContents(self._digest.hexdigest(), images, without, self._unreadable)

    def _members(self) -> Iterator[tarfile.TarInfo]:
        import tarfile

        self._file.seek(0)
        with tarfile.open(fileobj=self._file, mode="r:") as archive:
            yield from archive
            # tarfile takes damage for the end
            self._file.seek(archive.offset)
            block = self._file.read(_BLOCK)
            if block != bytes(_BLOCK):
                reason = (
                    f"no header of a file at byte {archive.offset}" if block else "the end of the archive is missing"
                )
                raise tarfile.ReadError(reason)

    def _add(self, info: tarfile.TarInfo) -> None:
        facts = (info.name, info.size, info.mtime, info.offset_data, info.type)
        self._digest.update(repr(facts).encode("utf-8", "surrogatepass"))
        match = _KEY.fullmatch(info.name)
        if not info.isreg() or info.issparse() or match is None or _META.match(info.name):
            return
        if info.name in self._names:
            raise UserError(
                f"shard {self._shard.path} has two files of the name {info.name}", hint="write it with each sample once"
            )
        self._names.add(info.name)
        key, ending = match[1], f".{match[2].lower()}"
        self._samples[key] = None
        if ending in IMAGE_ENDINGS:
            self._add_image(key, info)
        elif ending in self._captions and info.size <= _LONGEST_TEXT:
            self._file.seek(info.offset_data)
            content = self._file.read(info.size)
            self._digest.update(content)
            self._texts.setdefault(key, {})[ending] = (info.name, content)

    def _add_image(self, key: str, info: tarfile.TarInfo) -> None:
        size = None
        try:
            size, head = image_size(self._shard, self._file, info.name, (info.offset_data, info.size))
            self._digest.update(head)
        except UserError as error:
            self._unreadable[info.name] = error
        image = ShardImage(info.name, info.offset_data, info.size, size, None, None)
        self._images.setdefault(key, []).append(image)

    def _check_images(self) -> None:
        several = [" and ".join(image.name for image in each) for each in self._images.values() if len(each) > 1]
        if several:
            raise UserError(
                f"shard {self._shard.path} has several images in one sample: {listed(several, _MAX_NAMES)}",
                hint="write each image as a sample of its own: names are samples up to their first dot",
            )

    def _with_caption(self, key: str, image: ShardImage, problems: list[UserError]) -> ShardImage:
        texts = self._texts.get(key, {})
        for ending in self._captions:
            if ending not in texts:
                continue
            name, content = texts[ending]
            path = member_path(self._shard.path, name)
            try:
                caption = _json_caption(content, path) if ending == ".json" else _text(content, path)
            except UserError as error:
                problems.append(error)
                break
            if caption is not None:
                return image._replace(caption=caption, caption_name=name)
        return image


def _text(content: bytes, path: str) -> str:
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(f"caption {path} is not UTF-8 text: byte {error.start}", hint="write it as UTF-8") from None


def _json_caption(content: bytes, path: str) -> Caption:
    """`caption` and `tags` of a JSON file, which may have anything else too; None without both."""
    try:
        document = json.loads(_text(content, path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}", hint="write the shard again") from None
    if not isinstance(document, dict):
        return None
    caption, tags = document.get("caption"), document.get("tags")
    if isinstance(tags, list) and all(isinstance(tag, str) for tag in tags):
        tags = ", ".join(tags)
    found = [each if isinstance(each, str) else None for each in (caption, tags)]
    return None if found == [None, None] else found
