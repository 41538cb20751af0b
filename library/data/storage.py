"""Bytes of shards: local files, or files behind a URL that fsspec opens (s3://, gs://, hf://, https://)."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from library.cli.errors import UserError, first_line
from library.data.records import ShardMember

_PROTOCOL = "://"


def is_url(path: str) -> bool:
    """Whether fsspec has to open a path."""
    return _PROTOCOL in path


@contextmanager
def opened_shard(path: str) -> Iterator[IO[bytes]]:
    """A shard, opened to be read anywhere. Raises `OSError`, or `UserError` where fsspec cannot open a URL."""
    if not is_url(path):
        with open(path, "rb") as file:
            yield file
        return
    system, name = file_system(path)
    with as_user_errors(path):
        opened = system.open(name, "rb")
    with opened:
        yield opened


def file_state(path: str) -> tuple[int, str]:
    """Size of a shard in bytes, and what else changes with its content. Raises as `opened_shard` does."""
    if not is_url(path):
        status = os.stat(path)
        return status.st_size, f"{status.st_mtime_ns} {status.st_ctime_ns}"
    system, name = file_system(path)
    with as_user_errors(path):
        return int(system.info(name)["size"]), str(system.ukey(name))


def read_member(member: ShardMember) -> bytes:
    """The content of a file in a shard.

    Raises `OSError`, and `UserError` where the shard is not the one any more that was scanned.
    """
    shard = member.shard
    if is_url(shard.path):
        system, name = file_system(shard.path)
        with as_user_errors(shard.path):
            content = system.cat_file(name, start=member.offset, end=member.offset + member.num_bytes)
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


def _changed(path: str) -> UserError:
    return UserError(f"shard {path} has changed since it was scanned", hint="start training again")


def open_image_file(path: str, member: ShardMember | None) -> IO[bytes]:
    """The bytes of an image: of a file, or of a member of a shard."""
    return open(path, "rb") if member is None else io.BytesIO(read_member(member))


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it. Raises `UserError` for a protocol that it cannot open."""
    import fsspec.core  # takes longer to import than a small folder takes to scan

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"shard {url} cannot be opened: {first_line(error)}",
            hint="install the package of fsspec for this protocol, or copy the shards to a local folder",
        ) from None


@contextmanager
def as_user_errors(url: str) -> Iterator[None]:
    """What reading a URL raises, as `UserError` that names it."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"shard {url} does not exist", hint="correct the URL, or upload the shard") from None
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - of the client of any protocol
        raise UserError(
            f"shard {url} cannot be read: {first_line(error)}",
            hint="check the network, the credentials of this protocol and the URL",
        ) from None
