"""Bytes of shards: local files, or files behind a URL that fsspec opens (s3://, gs://, hf://, https://)."""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from library.cli.errors import UserError, first_line
from library.data.records import ShardMember

_PROTOCOL = "://"
_WEB = ("http://", "https://")
_BLOCK = 2**24  # bytes that a walk through a shard asks for at a time
_PAUSES = (1, 4)  # seconds before what failed in a network is tried again
# of a file on a web server; fsspec's `ukey` takes it for static
_VERSIONS = ("ETag", "Content-MD5", "Digest", "Last-Modified")
_NOT_FOUND = (404, 410)


class UnreadableShard(UserError):
    """A shard behind a URL that cannot be read, for a reason that holds for others there too."""


class MissingShard(UserError):
    """A shard behind a URL that does not exist."""

    def __init__(self, url: str):
        super().__init__(f"shard {url} does not exist", hint="correct the URL, or upload the shard")
        self.url = url

    def __reduce__(self):
        return type(self), (self.url,)


def is_url(path: str) -> bool:
    """Whether fsspec has to open a path."""
    return _PROTOCOL in path


@contextmanager
def opened_shard(path: str) -> Iterator[IO[bytes]]:
    """A shard, opened to be read from its start to its end, with small steps back.

    Raises `OSError`, or `UserError` where fsspec cannot open or read a URL, then or within the block.
    """
    if not is_url(path):
        with open(path, "rb") as file:
            yield file
        return
    system, name = file_system(path)
    with as_user_errors(path):
        # the cache that a protocol has by default may ask for the same bytes again after each step back
        opened = system.open(name, "rb", block_size=_BLOCK, cache_type="readahead")
    with opened:
        yield _Checked(opened, path)  # type: ignore[misc]  # what tarfile and the scan call


class _Checked:
    """A file behind a URL whose errors are those of `as_user_errors`."""

    def __init__(self, file: IO[bytes], url: str):
        self._file = file
        self._url = url

    def read(self, length: int = -1) -> bytes:
        with as_user_errors(self._url):
            return self._file.read(length)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with as_user_errors(self._url):
            return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def file_state(path: str) -> tuple[int, str]:
    """Size of a shard in bytes, and what else changes with its content. Raises as `opened_shard` does."""
    if not is_url(path):
        status = os.stat(path)
        return status.st_size, f"{status.st_mtime_ns} {status.st_ctime_ns}"
    system, name = file_system(path)
    with as_user_errors(path):
        info = system.info(name)
        # what fsspec's own `ukey` does, which asks the server again
        key = hashlib.sha256(str(info).encode()).hexdigest() if _is_general(system, "ukey") else system.ukey(name)
    if info.get("size") is None or not info.get("partial", True):
        raise _without_ranges(path)
    return int(info["size"]), " ".join([str(key), *(str(info[each]) for each in _VERSIONS if each in info)])


def read_member(member: ShardMember) -> bytes:
    """The content of a file in a shard; behind a URL one request for these bytes.

    Raises `OSError`, and `UserError` where the shard is not the one any more that was scanned.
    """
    shard = member.shard
    if is_url(shard.path):
        content = _read_range(shard.path, member.offset, member.offset + member.num_bytes)
        if len(content) > member.num_bytes:
            raise _without_ranges(shard.path)
    else:
        with open(shard.path, "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            if (status.st_size, status.st_mtime_ns) != (shard.num_bytes, shard.mtime_ns):
                raise _changed(shard.path)
            file.seek(member.offset)
            content = file.read(member.num_bytes)
    if len(content) != member.num_bytes:
        raise _changed(shard.path)
    return content


def _read_range(url: str, start: int, end: int) -> bytes:
    """Some bytes of a URL, asked for again after a pause: a run of days meets networks that fail for a moment."""
    system, name = file_system(url)
    # without a request of the protocol's own for a range, fsspec opens the file, which reads whole blocks
    options = {"cache_type": "none"} if _is_general(system, "cat_file") else {}
    for pause in (*_PAUSES, None):
        try:
            with as_user_errors(url):
                return system.cat_file(name, start=start, end=end, **options)
        except UnreadableShard:
            if pause is None:
                raise
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _is_general(system: Any, method: str) -> bool:
    """Whether a method of a file system is fsspec's for all, and not the protocol's own."""
    from fsspec.spec import AbstractFileSystem

    return getattr(getattr(system, method), "__func__", None) is getattr(AbstractFileSystem, method)


def _changed(path: str) -> UserError:
    return UserError(f"shard {path} has changed since it was scanned", hint="start training again")


def _without_ranges(url: str) -> UserError:
    return UnreadableShard(
        f"shard {url} cannot be read in parts: its server does not answer requests for a range of bytes",
        hint="copy the shards to a local folder, or to a server or object store that does",
    )


def open_image_file(path: str, member: ShardMember | None) -> IO[bytes]:
    """The bytes of an image: of a file, or of a member of a shard."""
    return open(path, "rb") if member is None else io.BytesIO(read_member(member))


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it. Raises `UserError` for a protocol that it cannot open."""
    import fsspec.core  # takes longer to import than a small folder takes to scan

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UnreadableShard(
            f"shard {url} cannot be opened: {first_line(error)}",
            hint="install the package of fsspec for this protocol, or copy the shards to a local folder",
        ) from None


@contextmanager
def as_user_errors(url: str) -> Iterator[None]:
    """What reading a URL raises, as `UserError` that names it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - of the client of any protocol
        reason = _reason(error, url)
        if isinstance(reason, FileNotFoundError):
            raise MissingShard(url) from None
        raise UnreadableShard(
            f"shard {url} cannot be read: {first_line(reason)}",
            hint="check the network, the credentials of this protocol and the URL",
        ) from None


def _reason(error: Exception, url: str) -> BaseException:
    """What went wrong: fsspec's client of the web calls anything a file that is not found, and has it as the cause."""
    cause = error.__cause__
    is_absent = cause is None or not url.startswith(_WEB) or getattr(cause, "status", None) in _NOT_FOUND
    return error if is_absent or cause is None else cause
