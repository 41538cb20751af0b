"""Names of what a run writes, and which earlier files are let go. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

STATE_ENDING = "-state"
DEFAULT_NAME = "last"
# in front of a suffix, where the run has no name
_UNNAMED = {"epoch": "epoch", "step": "at", "end": DEFAULT_NAME}
# of files of weights; a whole model can be a folder too
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
    """A file or folder that a run has written."""

    path: Path
    when: Literal["epoch", "step", "end"]
    number: int  # the epoch, counted from 1, or the step; 0 at the end
    ending: str  # "-state", or that of a file of weights; empty for a folder

    @property
    def is_state(self) -> bool:
        return self.ending == STATE_ENDING


def saved_under(folder: Path, name: str | None) -> Iterator[Saved]:
    """What stands in `folder` under the output name `name`, or of runs without one: weights, models and states."""
    endings = "|".join(re.escape(ending) for ending in (STATE_ENDING, *WEIGHT_ENDINGS))
    epoch, step, end = (re.escape(name or _UNNAMED[when]) for when in ("epoch", "step", "end"))
    pattern = re.compile(rf"(?:{epoch}-(\d{{6,}})|{step}-step(\d{{8,}})|{end})({endings})")
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        match = pattern.fullmatch(path.name)
        if match is None or (match[3] == "" and not (path / "model_index.json").is_file()):
            continue
        epoch, step, ending = match.groups()
        when = "epoch" if epoch else "step" if step else "end"
        yield Saved(path, when, int(epoch or step or 0), ending)


@dataclass(frozen=True)
class Retention:
    """How many earlier saves stay, of weights or of states; None keeps all."""

    last_epochs: int | None = None  # in epochs' saves
    last_steps: int | None = None  # in steps

    def expires(self, saved: Saved, when: str, number: int, every: int) -> bool:
        """Whether an earlier save is let go when the one of epoch or step `number` is there, and saves are `every`."""
        if saved.when != when:
            return False
        if when == "epoch":
            return self.last_epochs is not None and saved.number <= number - every * self.last_epochs
        return self.last_steps is not None and saved.number < number - self.last_steps
