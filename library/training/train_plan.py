"""The arithmetic of a run: micro-batches, steps, epochs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from library.cli.errors import UserError
from library.data.records import StepClock
from library.training.options import OutputOptions, TrainingOptions


@dataclass(frozen=True)
class Position:
    """A place between two optimizer steps. `epoch` counts from 0, `step_in_epoch` and `global_step` are steps done."""

    epoch: int = 0
    step_in_epoch: int = 0
    global_step: int = 0


@dataclass(frozen=True)
class TrainPlan:
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

    @property
    def group_size(self) -> int:
        return self.accumulation * self.num_processes

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.num_micro_batches / self.group_size)

    @property
    def clock(self) -> StepClock:
        """What the data room has to know of steps."""
        return StepClock(self.group_size, self.steps_per_epoch, self.num_steps)

    def after_step(self, position: Position) -> Position:
        """The position after one more step; the end of an epoch is the start of the next."""
        step = position.step_in_epoch + 1
        if step == self.steps_per_epoch:
            return Position(position.epoch + 1, 0, position.global_step + 1)
        return Position(position.epoch, step, position.global_step + 1)

    def groups(self, first_step: int) -> Iterator[range]:
        """The micro-batches of each step of an epoch, from step `first_step` on, as indices into the epoch's plan."""
        for start in range(first_step * self.group_size, self.num_micro_batches, self.group_size):
            yield range(start, min(start + self.group_size, self.num_micro_batches))


def make_train_plan(
    options: TrainingOptions, output: OutputOptions, *, seed: int, num_micro_batches: int, num_processes: int
) -> TrainPlan:
    """The plan that the options ask for; `--max_train_epochs` wins over `--max_train_steps`.

    `--save_n_epoch_ratio` wins over `--save_every_n_epochs`.
    """
    steps_per_epoch = math.ceil(num_micro_batches / (options.gradient_accumulation_steps * num_processes))
    if options.max_train_epochs is not None:
        num_epochs = options.max_train_epochs
        num_steps = num_epochs * steps_per_epoch
    else:
        num_steps = options.max_train_steps
        num_epochs = math.ceil(num_steps / steps_per_epoch)
    epochs_between = output.save_every_n_epochs
    if output.save_n_epoch_ratio is not None:
        epochs_between = max(1, num_epochs // output.save_n_epoch_ratio)
    return TrainPlan(
        seed=seed,
        num_micro_batches=num_micro_batches,
        accumulation=options.gradient_accumulation_steps,
        num_processes=num_processes,
        num_steps=num_steps,
        num_epochs=num_epochs,
        epochs_between_saves=epochs_between,
    )


def first_position(output: OutputOptions, plan: TrainPlan, saved: Position) -> Position:
    """Where the run begins: at `saved`, unless `--initial_step` or `--initial_epoch` say otherwise.

    Raises `UserError` when that is behind the end of the run.
    """
    if output.initial_step is None and output.initial_epoch is None:
        return saved
    flag, step = "--initial_step", output.initial_step
    if step is None:
        flag, step = "--initial_epoch", (output.initial_epoch - 1) * plan.steps_per_epoch
    if step >= plan.num_steps:
        raise UserError(
            f"{flag} begins behind step {step}, and the run has {plan.num_steps}",
            hint=f"lower {flag}, or raise --max_train_steps or --max_train_epochs",
        )
    epoch, step_in_epoch = divmod(step, plan.steps_per_epoch)
    if not output.skip_until_initial_step:
        step_in_epoch = 0
    return Position(epoch, step_in_epoch, epoch * plan.steps_per_epoch + step_in_epoch)
