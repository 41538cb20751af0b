"""The index of a shard: where its images lie, their sizes and captions, so that the next start reads nothing else.

`<shard>.index.json`, or in the folder of caches: a line of JSON with format, version and the CRC-32 of the rest, then
an object of columns with what the shard was when it was read. An image of width 0 could not be read.
"""

from __future__ import annotations

import json
import logging
import zlib
from pathlib import Path
from typing import Any

from library.cli.atomic_files import atomic_path
from library.data.scan.shard_members import ShardContents, ShardImage

logger = logging.getLogger(__name__)

_FORMAT, _VERSION = "shard index", 1
_COLUMNS = ("names", "offsets", "num_bytes", "widths", "heights", "captions", "caption_names")


def index_path(cache_base: str) -> Path:
    return Path(f"{cache_base}.index.json")


def read_shard_index(path: Path, facts: dict[str, Any]) -> ShardContents | None:
    """The contents of a shard; None unless the index was made from exactly this. A corrupt one is a warning."""
    try:
        content = path.read_bytes()
        header, _, body = content.partition(b"\n")
        stated = json.loads(header)
        if (stated["format"], stated["version"]) != (_FORMAT, _VERSION) or stated["crc32"] != zlib.crc32(body):
            raise ValueError("another version, or a wrong checksum")
        document = json.loads(body)
        if document["facts"] != facts:
            return None
        columns = [document[name] for name in _COLUMNS]
        images = [
            ShardImage(name, offset, num_bytes, (width, height) if width else None, caption, caption_name)
            for name, offset, num_bytes, width, height, caption, caption_name in zip(*columns, strict=True)
        ]
        return ShardContents(document["identity"], images, document["without_image"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        logger.warning("the shard index %s is not usable and will be made again (%s)", path, error)
        return None


def write_shard_index(path: Path, facts: dict[str, Any], contents: ShardContents) -> None:
    """Raises `OSError`."""
    rows = [
        (image.name, image.offset, image.num_bytes, *(image.size or (0, 0)), image.caption, image.caption_name)
        for image in contents.images
    ]
    columns: list[tuple[Any, ...]] = list(zip(*rows, strict=True)) or [()] * len(_COLUMNS)
    document = {
        "facts": facts,
        "identity": contents.identity,
        "without_image": contents.without_image,
        **dict(zip(_COLUMNS, columns, strict=True)),
    }
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    body = text.encode("utf-8", "surrogatepass")
    header = json.dumps({"format": _FORMAT, "version": _VERSION, "crc32": zlib.crc32(body)}).encode()
    with atomic_path(path) as temporary:
        temporary.write_bytes(header + b"\n" + body)
