"""Which tar shards are meant: braces, globs, folders, URLs and lists of these, as users of WebDataset write them."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterator, Sequence

from library.cli.documents import no_such_path
from library.cli.errors import UserError, listed, plural
from library.data.real_paths import RealPaths
from library.data.storage import as_user_errors, file_system, is_url

SHARD_ENDING = ".tar"

_MAX_NAMES = 5
_MOST_SHARDS = 1_000_000
_BRACES = re.compile(r"\{([^{}]*,[^{}]*|\w+\.\.\w+(?:\.\.\d+)?)\}")
_RANGE = re.compile(r"(\d+|[a-zA-Z])\.\.(\d+|[a-zA-Z])(?:\.\.(\d+))?")


def find_shards(patterns: Sequence[str], named: str) -> list[str]:
    """The paths of the shards, in the order in which they are given, those of a folder or glob sorted; each once.

    `named`: how the user gave them. Raises `UserError` for what meets no shard, and for shards that do not exist.
    """
    found: list[str] = []
    missing: list[str] = []
    for pattern in patterns:
        for text in _split(pattern):
            for path in expand_braces(text, named):
                here = _shards_at(path, named)
                found += here
                if not here:
                    missing.append(path)
    if missing:
        shown, hint = no_such_path(missing[0], "correct the path or the range in braces, or copy the shards there")
        names = shown if len(missing) == 1 else listed(missing, _MAX_NAMES)
        count = "this shard does" if len(missing) == 1 else f"{plural(len(missing), 'shard')} do"
        raise UserError(f"{named}: {count} not exist: {names}", hint=hint)
    real = RealPaths()
    first: dict[str, str] = {}
    for path in found:
        first.setdefault(path if is_url(path) else real.file(path), path)
    return list(first.values())


def are_shards(path: str) -> bool:
    """Whether what was given as a folder of images is shards, or a folder of them: for the hint of an error."""
    if is_url(path) or path.endswith(SHARD_ENDING):
        return True
    try:
        return any(name.endswith(SHARD_ENDING) for name in os.listdir(path))
    except (OSError, ValueError):
        return False


def _split(pattern: str) -> list[str]:
    """WebDataset's way to write several in one text: a.tar::b.tar."""
    parts = pattern.split("::")
    return parts if all(part.endswith(SHARD_ENDING) for part in parts) else [pattern]


def expand_braces(text: str, named: str = "shards") -> list[str]:
    """All texts that a text with {000..099} and {a,b} stands for, as a shell expands it; zeros in front are kept."""
    pieces = [text]
    while _BRACES.search(pieces[0]):  # all have the same ones left
        pieces = list(itertools.islice(itertools.chain.from_iterable(map(_expand_first, pieces)), _MOST_SHARDS + 1))
        if len(pieces) > _MOST_SHARDS:
            raise UserError(f"{named} {text} stands for more than {_MOST_SHARDS} shards", hint="give a smaller range")
    return pieces


def _expand_first(text: str) -> Iterator[str]:
    """The texts for the first braces without braces in them, which vary slowest, as in a shell."""
    braces = _BRACES.search(text)
    if braces is None:
        return iter((text,))
    head, tail = text[: braces.start()], text[braces.end() :]
    return (head + each + tail for each in _alternatives(braces[1]))


def _alternatives(body: str) -> Iterator[str]:
    span = _RANGE.fullmatch(body)
    if span is None or span[1].isdigit() != span[2].isdigit():
        yield from body.split(",")
        return
    first, last, step = span[1], span[2], max(1, int(span[3] or 1))
    number = int if first.isdigit() else ord
    start, end = number(first), number(last)
    is_padded = first.isdigit() and any(len(each) > 1 and each[0] == "0" for each in (first, last))
    width = max(len(first), len(last)) if is_padded else 0
    for value in range(start, end + 1, step) if start <= end else range(start, end - 1, -step):
        yield str(value).zfill(width) if first.isdigit() else chr(value)


def _shards_at(path: str, named: str) -> list[str]:
    """The shard at a path; those of a folder; those that a glob meets."""
    if path.startswith("pipe:"):
        raise UserError(f"{named} {path}: commands are not run", hint="give the URL itself, or local files")
    if is_url(path):
        return _shards_at_url(path, named)
    if os.path.isdir(path):
        within = sorted(name for name in os.listdir(path) if name.endswith(SHARD_ENDING) and name[0] != ".")
        if not within:
            raise UserError(f"{named}: folder {path} contains no shards (*{SHARD_ENDING})", hint=_WRITE_SHARDS)
        return [os.path.join(path, name) for name in within]
    if os.path.exists(path):
        return [path]
    if glob.has_magic(path):
        return sorted(glob.glob(path)) or _met_nothing(path, named)
    return []


def _shards_at_url(url: str, named: str) -> list[str]:
    """A URL of one shard is taken as it is: reading it tells whether it exists."""
    is_pattern = glob.has_magic(url) and "?" not in url  # a question mark begins the query of a URL
    if url.partition("?")[0].endswith(SHARD_ENDING) and not is_pattern:
        return [url]
    system, name = file_system(url)
    with as_user_errors(url):
        names = sorted(system.glob(name if is_pattern else f"{name.rstrip('/')}/*{SHARD_ENDING}"))
    return [system.unstrip_protocol(each) for each in names] or _met_nothing(url, named)


_WRITE_SHARDS = "write tar files of images and captions, such as webdataset.ShardWriter or tar makes"


def _met_nothing(path: str, named: str) -> list[str]:
    raise UserError(f"{named}: {path} meets no shard", hint="correct the pattern, or give the folder of the shards")
