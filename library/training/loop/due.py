"""What is due when: validation, sample images and saves, after a step or an epoch. No model is needed to tell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from library.training.checkpoints.options import OutputOptions
from library.training.checkpoints.saved_names import epoch_suffix, step_suffix
from library.training.evaluation.options import SampleOptions, ValidationOptions
from library.training.step_plan import Position, StepPlan


@dataclass(frozen=True)
class Due:
    """What is to be done now."""

    validate: bool = False
    sample: bool = False
    save: bool = False


@dataclass(frozen=True)
class OutputSchedule:
    """When a run validates, draws samples and saves, beside the end, when it validates and saves."""

    output: OutputOptions
    samples: SampleOptions
    validation: ValidationOptions
    plan: StepPlan

    def at_start(self) -> Due:
        """Before the first step: the point that the validation curve starts from."""
        return Due(validate=True, sample=self.samples.sample_at_first)

    def after_step(self, step: int) -> Due:
        """After step `step`, counted from 1. `--sample_every_n_epochs` overrides `--sample_every_n_steps`."""
        return Due(
            validate=_is_due(step, self.validation.validate_every_n_steps),
            sample=not self.samples.sample_every_n_epochs and _is_due(step, self.samples.sample_every_n_steps),
            save=_is_due(step, self.output.save_every_n_steps),
        )

    def after_epoch(self, epoch: int) -> Due:
        """After epoch `epoch`, counted from 1. The last epoch's save is that of the end."""
        return Due(
            validate=_is_due(epoch, self.validation.epochs_between),
            sample=_is_due(epoch, self.samples.sample_every_n_epochs),
            save=_is_due(epoch, self.plan.epochs_between_saves) and epoch < self.plan.num_epochs,
        )

    def samples_at_end(self, position: Position) -> bool:
        """Whether the samples of an epoch are due that `--max_train_steps` cuts."""
        return position.step_in_epoch > 0 and _is_due(position.epoch + 1, self.samples.sample_every_n_epochs)

    def saves(self, start: Position) -> Iterator[str]:
        """The suffixes of all saves of a run from `start` on, in order; "" is the result."""
        for position, epoch in self._ends(start):
            if epoch is None and self.after_step(position.global_step).save:
                yield step_suffix(position.global_step)
            if epoch is not None and self.after_epoch(epoch).save:
                yield epoch_suffix(epoch)
        yield ""

    def num_sample_rounds(self, start: Position) -> int:
        """How often sample images are generated from `start` on."""
        position, rounds = start, int(start.global_step == 0 and self.at_start().sample)
        for position, epoch in self._ends(start):
            due = self.after_step(position.global_step) if epoch is None else self.after_epoch(epoch)
            rounds += due.sample
        return rounds + self.samples_at_end(position)

    def _ends(self, start: Position) -> Iterator[tuple[Position, int | None]]:
        """(position, None) after each step, and (position, epoch) where an epoch ends with it."""
        position = start
        while position.global_step < self.plan.num_steps:
            position = self.plan.after_step(position)
            yield position, None
            if position.is_epoch_end_due:
                yield position, position.epoch

    @property
    def saves_state_at_end(self) -> bool:
        return self.output.save_state or self.output.save_state_on_train_end

    @property
    def saves_state_on_signal(self) -> bool:
        return self.output.save_state or self.output.save_state_on_signal


def _is_due(number: int, every: int | None) -> bool:
    return bool(every and number % every == 0)
