"""The arithmetic of a run: micro-batches, steps, epochs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from library.cli.errors import plural
from library.data.records import StepCounter


@dataclass(frozen=True)
class Position:
    """A place between two optimizer steps. `epoch` counts from 0, `step_in_epoch` and `global_step` are steps done."""

    epoch: int = 0
    step_in_epoch: int = 0
    global_step: int = 0
    is_epoch_end_due: bool = False  # validation, samples and save of the epoch before, which was the step before


@dataclass(frozen=True)
class StepPlan:
    """How the micro-batches of an epoch become optimizer steps.

    A step takes the next `num_processes` x `accumulation` micro-batches; the last one of an epoch takes what is left.
    """

    seed: int
    num_micro_batches: int  # per epoch, of all processes together
    accumulation: int
    num_processes: int
    num_steps: int
    num_epochs: int
    epochs_between_saves: int | None = None
    offset: int = 0  # steps made more than the epochs before would have now: a resumed run may have had longer ones

    @property
    def group_size(self) -> int:
        return self.accumulation * self.num_processes

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.num_micro_batches / self.group_size)

    @property
    def arithmetic(self) -> str:
        """How the micro-batches of an epoch become steps, in words."""
        return (
            f"(accumulation {self.accumulation} x processes {self.num_processes})"
            f" = {plural(self.steps_per_epoch, 'step')} per epoch x {plural(self.num_epochs, 'epoch')};"
            f" {plural(self.num_steps, 'step')} in all"
        )

    @property
    def clock(self) -> StepCounter:
        """What the data room has to know of steps."""
        return StepCounter(self.group_size, self.steps_per_epoch, self.num_steps, self.offset)

    def after_step(self, position: Position) -> Position:
        """The position after one more step; the end of an epoch is the start of the next."""
        step = position.step_in_epoch + 1
        if step == self.steps_per_epoch:
            return Position(position.epoch + 1, 0, position.global_step + 1, is_epoch_end_due=True)
        return Position(position.epoch, step, position.global_step + 1)

    def groups(self, first_step: int) -> Iterator[range]:
        """The micro-batches of each step of an epoch, from step `first_step` on, as indices into the epoch's plan."""
        for start in range(first_step * self.group_size, self.num_micro_batches, self.group_size):
            yield range(start, min(start + self.group_size, self.num_micro_batches))
