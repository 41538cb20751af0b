"""File names of checkpoints and states, and which of them retention removes. Imports no torch."""

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


def saved_under(folder: Path, name: str | None) -> Iterator[Saved]:
    """The checkpoints and states in `folder` with the output name `name`, or those of runs without a name."""
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
        when: When = "epoch" if epoch else "step" if step else "end"
        yield Saved(path, when, int(epoch or step or 0), ending)


@dataclass(frozen=True)
class Retention:
    """Retention of earlier checkpoints, or of states: how many are kept; None keeps all."""

    last_epochs: int | None = None  # number of epoch checkpoints
    last_steps: int | None = None  # in steps

    def expires(self, saved: Saved, when: str, number: int, every: int) -> bool:
        """Whether to prune an earlier checkpoint once epoch or step `number` is saved; `every`: save interval."""
        if saved.when != when:
            return False
        if when == "epoch":
            return self.last_epochs is not None and saved.number <= number - every * self.last_epochs
        return self.last_steps is not None and saved.number < number - self.last_steps
