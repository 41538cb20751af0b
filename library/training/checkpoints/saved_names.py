"""File names of checkpoints and states. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

STATE_ENDING = "-state"
DEFAULT_NAME = "last"
When = Literal["epoch", "step", "end"]
# before the suffix, where the run has no name
_UNNAMED = {"epoch": "epoch", "step": "at", "end": DEFAULT_NAME}
_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{number}" for port in ("COM", "LPT") for number in range(1, 10))}
# of weight files; a full model can be a folder too
WEIGHT_ENDINGS = (".safetensors", ".ckpt", ".pt", ".bin", "")


def epoch_suffix(epoch: int) -> str:
    """`epoch` counted from 1: "-000004"."""
    return f"-{epoch:06d}"


def step_suffix(step: int) -> str:
    return f"-step{step:08d}"


def file_stem(name: str | None, suffix: str) -> str:
    """The file name without ending: `<name><suffix>`; without a name `last`, `epoch-000004`, `at-step00001000`."""
    when = "step" if suffix.startswith("-step") else "epoch" if suffix else "end"
    return f"{name or _UNNAMED[when]}{suffix}"


@dataclass(frozen=True)
class Saved:
    """A checkpoint or state that a run has written: a file or folder."""

    path: Path
    when: When
    number: int  # the epoch, counted from 1, or the step; 0 at the end
    ending: str  # "-state", or the extension of a weight file; empty for a folder

    @property
    def is_state(self) -> bool:
        return self.ending == STATE_ENDING


def windows_problem(name: str) -> str | None:
    """Why Windows makes no file or folder of this name, or another one; None where it does."""
    if name.split(".")[0].rstrip().upper() in _DEVICES:
        return f"{name.split('.')[0]} is a device"
    wrong = sorted({character for character in name if character in '<>:"|?*' or character < " "})
    if wrong:
        return f"no name may have {' '.join(map(repr, wrong))}"
    return "it drops a dot or blank at the end" if name.endswith((".", " ")) else None


def saved_under(folder: Path, name: str | None, *, ignore_case: bool = False) -> Iterator[Saved]:
    """The checkpoints and states in `folder` with the output name `name`, or those of runs without a name.

    `ignore_case`: those too that differ in case alone and are the same file where the file system ignores it.
    """
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        own_path = path
        if ignore_case and name is not None and path.name.lower().startswith(name.lower()):
            own_path = path.with_name(name + path.name[len(name) :])
        if own_path != path and not (own_path.exists() and own_path.samefile(path)):
            continue
        saved = saved_as(own_path, name)
        if saved is not None and (saved.ending or (path / "model_index.json").is_file()):
            yield saved


def saved_as(path: Path, name: str | None) -> Saved | None:
    """What a path is by its file name, if a run with the output name `name`, or without one, would write it."""
    endings = "|".join(re.escape(ending) for ending in (STATE_ENDING, *WEIGHT_ENDINGS))
    epoch, step, end = (re.escape(name or _UNNAMED[when]) for when in ("epoch", "step", "end"))
    match = re.fullmatch(rf"(?:{epoch}-(\d{{6,}})|{step}-step(\d{{8,}})|{end})({endings})", path.name)
    if match is None:
        return None
    epoch, step, ending = match.groups()
    when: When = "epoch" if epoch else "step" if step else "end"
    return Saved(path, when, int(epoch or step or 0), ending)
