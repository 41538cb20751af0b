"""The files that a run has saved, with sizes and hashes; each is hashed once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from library.cli.errors import UserError
from library.cli.file_hashes import file_sha256
from library.run_report.record import SavedFile
from library.training.checkpoints.saved_names import STATE_ENDING
from library.training.checkpoints.states import read_state_header

HASHED_AT_ONCE = 256 * 2**20  # bytes, in well under a second; larger files wait for the end of the run


class SavedFiles:
    """What of a run is on disk now: files in its output folder, and those in folders there."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._paths: dict[Path, None] = {}
        self._known: dict[str, SavedFile] = {}

    def go_on(self, earlier: Iterable[SavedFile]) -> None:
        """Takes over the files of a run that is resumed; those that are still the same keep their hashes."""
        for file in earlier:
            self._known[file.name] = file
            self._paths[self._folder / file.name.split("/")[0]] = None

    def add(self, path: Path) -> None:
        """A checkpoint or state that was saved: a file or folder."""
        self._paths.pop(path, None)
        self._paths[path] = None

    def described(self, *, hashes_all: bool) -> list[SavedFile]:
        """The files that are there, in the order of saving. `hashes_all`: large ones too."""
        found = [self._described(path, hashes_all) for top in self._paths for path in _files_in(top)]
        files = [file for file in found if file is not None]
        self._known = {file.name: file for file in files}
        return files

    def _described(self, path: Path, hashes_all: bool) -> SavedFile | None:
        name = path.relative_to(self._folder).as_posix()
        try:
            facts = path.stat()
            known = self._known.get(name)
            digest = None
            if known is not None and (known.size, known.mtime_ns) == (facts.st_size, facts.st_mtime_ns):
                digest = known.sha256
            digest = digest or _digest_in_state(path)
            if digest is None and (hashes_all or facts.st_size <= HASHED_AT_ONCE):
                digest = file_sha256(path)
        except OSError:  # pruned, or replaced, in between
            return None
        return SavedFile(name, facts.st_size, digest, facts.st_mtime_ns)


def _files_in(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from (each for each in sorted(path.rglob("*")) if each.is_file())
    elif path.is_file():
        yield path


def _digest_in_state(path: Path) -> str | None:
    """The hash that was computed when a state was saved."""
    if not path.parent.name.endswith(STATE_ENDING):
        return None
    try:
        entry = read_state_header(path.parent).files.get(path.name)
    except UserError:
        return None
    return None if entry is None else str(entry["sha256"])
