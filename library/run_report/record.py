"""The record of a run: what its page shows, as plain values that stand in the page as JSON."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from library.cli.atomic_files import atomic_path
from library.cli.errors import UserError

FORMAT = 1
PAGE_ENDING = "-run.html"
_OPENING, _CLOSING = '<script type="application/json" id="record">', "</script>"
_IMAGE = re.compile(r'<img id="sample-(\d+)-(\d+)" src="(data:image/jpeg;base64,[A-Za-z0-9+/=]+)"')

Points = list[tuple[int, float]]  # (step, value)
ImageKey = tuple[int, int]  # (row, step)


@dataclass(frozen=True)
class Ending:
    """How a run ended. `kind`: "running" where it has not, "finished", "stopped", "out of memory" or "failed"."""

    kind: str = "running"
    text: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Save:
    """A checkpoint or state, by its name in the output folder."""

    step: int
    name: str


@dataclass(frozen=True)
class Phase:
    """Seconds spent on something, and the most memory that the run had taken by the end of it."""

    name: str
    seconds: float
    peak_gib: float


@dataclass(frozen=True)
class Session:
    """One start of a run that was resumed later."""

    first_step: int
    last_step: int
    seconds: float
    ending: str


@dataclass(frozen=True)
class SavedFile:
    """A file in the output folder. `sha256` None: not hashed. `mtime_ns` tells whether it is still the same."""

    name: str
    size: int
    sha256: str | None
    mtime_ns: int


@dataclass(frozen=True)
class SampleRow:
    """A sample prompt, and how its images were made."""

    prompt: str
    negative_prompt: str
    settings: str


@dataclass(frozen=True)
class Group:
    """Facts under a title, as (name, value)."""

    title: str
    rows: list[tuple[str, str]]


@dataclass
class RunRecord:
    """What is known of a run. Paths are names in its output folder; secrets are in none of it."""

    name: str
    program: str
    command: str
    seed: int
    num_steps: int
    started_at: float  # seconds since the epoch, as all times
    updated_at: float = 0.0
    first_step: int = 0  # that this session began after
    step: int = 0
    ending: Ending = field(default_factory=Ending)
    facts: list[Group] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)  # that are not at their defaults
    curves: dict[str, Points] = field(default_factory=dict)
    epoch_ends: list[int] = field(default_factory=list)
    saves: list[Save] = field(default_factory=list)
    skipped: list[tuple[int, str]] = field(default_factory=list)  # steps that were not applied, the first of them
    num_skipped: int = 0
    warnings: list[str] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)  # before this one
    files: list[SavedFile] = field(default_factory=list)
    samples: list[SampleRow] = field(default_factory=list)
    rounds: list[tuple[int, str]] = field(default_factory=list)  # (step, title)
    format: int = FORMAT

    @property
    def seconds(self) -> float:
        """Of all sessions."""
        return sum(session.seconds for session in self.sessions) + max(0.0, self.updated_at - self.started_at)

    def text(self) -> str:
        """JSON that can stand inside of an HTML element."""
        return json.dumps(asdict(self), allow_nan=False).replace("<", "\\u003c")


_LISTS = {"saves": Save, "phases": Phase, "sessions": Session, "files": SavedFile, "samples": SampleRow}


def _record_of(values: dict[str, Any]) -> RunRecord:
    """Raises `TypeError`, `KeyError` or `ValueError` for what is no record."""
    if values.get("format") != FORMAT:
        raise ValueError(f"format {values.get('format')}, not {FORMAT}")
    known = {each.name for each in fields(RunRecord)}
    facts = {name: value for name, value in values.items() if name in known}
    facts["ending"] = Ending(**values["ending"])
    facts["facts"] = [Group(each["title"], [(name, text) for name, text in each["rows"]]) for each in values["facts"]]
    for name, kind in _LISTS.items():
        facts[name] = [kind(**each) for each in values[name]]
    for name in ("skipped", "rounds"):
        facts[name] = [(int(step), str(text)) for step, text in values[name]]
    facts["curves"] = {
        str(name): [(int(step), float(value)) for step, value in points] for name, points in values["curves"].items()
    }
    return RunRecord(**facts)


def record_element(record: RunRecord) -> str:
    """The element of a page that holds the record; it is data, which no browser runs."""
    return f"{_OPENING}{record.text()}{_CLOSING}"


@dataclass(frozen=True)
class ReadPage:
    """A page read back: its record, and its sample images as data URIs."""

    path: Path
    record: RunRecord
    images: dict[ImageKey, str]


def read_page(path: Path) -> ReadPage:
    """Reads the page of a run. Raises `UserError` for a file that is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror or error}"
        raise UserError(message, hint="give the page of a run, or its output folder") from None
    except UnicodeDecodeError:
        raise _no_page(path, "it is not UTF-8 text") from None
    _, found, rest = text.partition(_OPENING)
    if not found:
        raise _no_page(path, "it has no record")
    try:
        record = _record_of(json.loads(rest.partition(_CLOSING)[0]))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _no_page(path, f"its record is damaged ({type(error).__name__}: {error})") from None
    return ReadPage(path, record, {(int(row), int(step)): uri for row, step, uri in _IMAGE.findall(text)})


def _no_page(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is not the page of a run: {reason}", hint=f"give a file <name>{PAGE_ENDING}")


def write_text(path: Path, text: str) -> None:
    """Writes a page whole or not at all. Raises `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
