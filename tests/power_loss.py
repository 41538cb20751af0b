"""What a disk may hold after the power went while files were being written: every such outcome, to be read back.

While a write is recorded, each flush, rename, removal and new folder is a point where the power may go. Of what was
not flushed until then a disk keeps what it likes: names in a folder up to any of their changes, in order, whatever
becomes of those in other folders; and of the contents of files nothing, the first half or all.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

Tree = dict[str, "Tree | bytes"]


@dataclass
class _File:
    content: bytes = b""
    flushed: bytes | None = None  # as of the last flush, if there was one
    _looked_at: tuple[int, int] = (0, 0)

    def look(self, path: Path) -> None:
        facts = path.stat()
        if (facts.st_mtime_ns, facts.st_size) != self._looked_at:
            self._looked_at = (facts.st_mtime_ns, facts.st_size)
            self.content = path.read_bytes()

    def outcomes(self) -> list[bytes]:
        if self.flushed == self.content:
            return [self.content]
        return [self.content, _first_half(self.content), self.flushed or b""]


@functools.lru_cache(maxsize=64)  # one object however many outcomes have it
def _first_half(content: bytes) -> bytes:
    return content[: len(content) // 2]


@dataclass
class _Folder:
    entries: dict[str, int] = field(default_factory=dict)  # name -> node
    kept: list[dict[str, int]] = field(default_factory=lambda: [{}])  # as flushed, then after each change since


class PowerLoss:
    """The outcomes of what is written below `root` within `recording`, and those that are possible at its end."""

    def __init__(self, root: Path):
        self._root = root
        self._nodes: list[_File | _Folder] = []
        self._node_of: dict[int, int] = {}  # by inode; those of removed files are used again
        self._outcomes: dict[object, Tree] = {}
        self.at_end: list[Tree] = []
        self._look()
        for node in self._nodes:  # what is there lies on the disk
            self._flush(node)

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        names = ("fsync", "replace", "rename", "unlink", "remove", "rmdir", "mkdir")
        real = {name: getattr(os, name) for name in names}
        for name, call in real.items():
            setattr(os, name, self._watched(name, call))
        try:
            yield
        finally:
            for name, call in real.items():
                setattr(os, name, call)
            self.at_end = self._crash()

    def _watched(self, name, call):
        def watched(*args, **kwargs):
            self._crash()
            result = call(*args, **kwargs)
            self._look()
            if name == "fsync":
                number = self._node_of.get(os.fstat(args[0]).st_ino)
                if number is not None:
                    self._flush(self._nodes[number])
            return result

        return watched

    def _flush(self, node: _File | _Folder) -> None:
        if isinstance(node, _Folder):
            node.kept = [dict(node.entries)]
        else:
            node.flushed = node.content

    def _look(self) -> None:
        """Takes in what has changed since the last look; the changes of one look in one folder are one change."""
        seen: dict[int, int] = {}
        self._look_into(self._root, self._number_of(self._root.stat().st_ino, _Folder, seen), seen)
        self._node_of = seen

    def _number_of(self, inode: int, kind: type, seen: dict[int, int]) -> int:
        if inode not in self._node_of:
            self._node_of[inode] = len(self._nodes)
            self._nodes.append(kind())
        seen[inode] = self._node_of[inode]
        return seen[inode]

    def _look_into(self, path: Path, number: int, seen: dict[int, int]) -> None:
        folder = self._nodes[number]
        before, folder.entries = folder.entries, {}
        for entry in sorted(path.iterdir()):
            kind = _Folder if entry.is_dir() else _File
            number = self._number_of(entry.stat().st_ino, kind, seen)
            folder.entries[entry.name] = number
            if kind is _Folder:
                self._look_into(entry, number, seen)
            else:
                self._nodes[number].look(entry)
        if folder.entries != before:
            folder.kept.append(dict(folder.entries))

    def _crash(self) -> list[Tree]:
        """Adds what the disk may hold if the power goes now."""
        self._look()
        below = [number for number, node in enumerate(self._nodes) if isinstance(node, _Folder) and number]
        combined = itertools.product(self._nodes[0].kept, self._choices(below), range(3))
        trees = [self._tree(top, chosen, torn) for top, chosen, torn in combined]
        now = {_identity(tree): tree for tree in trees}
        self._outcomes |= now
        return list(now.values())

    @property
    def outcomes(self) -> list[Tree]:
        return list(self._outcomes.values())

    def _choices(self, below: list[int]) -> list[dict[int, int]]:
        """Which of its versions each folder below the top has: all the newest, all but one, or all the oldest."""
        oldest = dict.fromkeys(below, 0)
        newest = {number: len(self._nodes[number].kept) - 1 for number in below}
        open_ones = [number for number in below if newest[number]]
        flipped = [newest | {number: oldest[number]} for number in open_ones]
        return [newest, oldest, *flipped] if open_ones else [newest]

    def _tree(self, entries: dict[str, int], chosen: dict[int, int], torn: int) -> Tree:
        tree: Tree = {}
        for name, number in entries.items():
            node = self._nodes[number]
            if isinstance(node, _Folder):
                tree[name] = self._tree(node.kept[chosen[number]], chosen, torn)
            else:
                outcomes = node.outcomes()
                tree[name] = outcomes[min(torn, len(outcomes) - 1)]
        return tree


def _identity(tree: Tree | bytes) -> object:
    """What tells two trees apart; a content is one object in all of them."""
    return id(tree) if isinstance(tree, bytes) else tuple((name, _identity(each)) for name, each in tree.items())


def restore(tree: Tree, folder: Path) -> None:
    """Makes the folder hold what the disk does."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in tree.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            restore(content, folder / name)
