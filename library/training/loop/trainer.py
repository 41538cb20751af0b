"""The loop: epochs of optimizer steps, from a position to the end of the plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from accelerate import Accelerator

from library.cli.errors import Stopped
from library.models.family import ModelFamily
from library.training.inputs.run_data import LoadedBatch, Loader, RunData
from library.training.loop.failures import Whereabouts, saved_whatever_happens
from library.training.loop.outputs import Outputs
from library.training.loop.step import Step
from library.training.method import TrainingMethod
from library.training.model_setup import set_training_mode
from library.training.optimization.optimizer_state import start_training
from library.training.step_plan import Position, StepPlan


class Trainer:
    """Trains: gives each step its batches, and tells the outputs where the run is."""

    def __init__(
        self,
        accelerator: Accelerator,
        data: RunData,
        *,
        loader: Loader,
        plan: StepPlan,
        family: ModelFamily,
        method: TrainingMethod,
        step: Step,
        outputs: Outputs,
    ):
        self._accelerator = accelerator
        self._data = data
        self._family = family
        self._loader = loader
        self._plan = plan
        self._method = method
        self._step = step
        self._outputs = outputs

    def run(self, position: Position) -> None:
        """Trains from the position to the end of the plan, and saves, whatever ends it before."""
        set_training_mode(self._family, self._method)
        start_training(self._step.strategy.optimizer)
        with self._outputs.shown(position):
            if position.global_step == 0:
                self._outputs.begin(position)
            self._step.whole_step = position.global_step
            with self._step.stop_request.listening(), saved_whatever_happens(self._step, self._outputs, position) as at:
                self._end_epoch_if_due(at)
                while at.position.global_step < self._plan.num_steps:
                    self._run_epoch(at)
                self._outputs.end(at.position)

    def _run_epoch(self, at: Whereabouts) -> None:
        """Trains to the end of the epoch, or of the plan."""
        self._method.on_epoch_start(at.position.epoch)
        self._outputs.begin_epoch(at.position.epoch + 1)
        for fetch, num_in_step in self._steps_of_epoch(at.position):
            at.next_position = self._plan.after_step(at.position)
            self._step(fetch, num_in_step, at.next_position.global_step)
            at.position = at.next_position
            self._end_if_stopped(at)
            self._outputs.count_step(at.position)
            self._end_if_nonfinite(at)
            self._outputs.after_step(at.position)
            self._end_if_stopped(at)
        self._end_epoch_if_due(at)

    def _end_epoch_if_due(self, at: Whereabouts) -> None:
        """What is due at an epoch's end; a run that was stopped just before it has it when it is resumed."""
        if at.position.is_epoch_end_due:
            ended = replace(at.position, is_epoch_end_due=False)
            self._outputs.after_epoch(ended.epoch, ended)
            at.position = ended

    def _steps_of_epoch(self, position: Position) -> Iterator[tuple[Callable[[], list[LoadedBatch]], int]]:
        """For each step left in the epoch, what fetches this process's batches, and how many all processes have.

        Those are of all processes together: where they do not suffice, some processes take the last once more, with
        weight zero.
        """
        micro_batches = self._data.batches_of_epoch(self._plan.seed, position.epoch)
        groups = list(self._plan.groups(position.step_in_epoch))[: self._plan.num_steps - position.global_step]
        rank, num_processes = self._accelerator.process_index, self._accelerator.num_processes
        mine = [_share(group, rank, num_processes) for group in groups]
        batches = self._loader.batches([micro_batches[index] for indices in mine for index in indices])
        for group, indices in zip(groups, mine, strict=True):
            yield partial(_take, batches, len(indices)), len(group)

    def _end_if_stopped(self, at: Whereabouts) -> None:
        """Saves and raises `Stopped` when a signal has asked the run to end before its last step."""
        number = self._step.stop_signal
        if number and at.position.global_step < self._plan.num_steps:
            state = self._outputs.save_on_signal(at.position)
            at.is_saved = True
            raise Stopped(number, state)

    def _end_if_nonfinite(self, at: Whereabouts) -> None:
        """Saves a state and raises `UserError` after too many steps in a row whose loss or gradients are not finite."""
        if self._step.nonfinite.are_too_many:
            state = self._outputs.save_state_alone(at.position)
            at.is_saved = True
            raise self._step.nonfinite.error(state, self._step.strategy.are_weights_finite())


def _share(group: range, rank: int, num_processes: int) -> list[int]:
    """The micro-batches of a step that a process computes: all processes equally many."""
    padding = -len(group) % num_processes
    return [*group, *[group[-1]] * padding][rank::num_processes]


def _take(batches: Iterator[LoadedBatch], number: int) -> list[LoadedBatch]:
    return [next(batches) for _ in range(number)]
