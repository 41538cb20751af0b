"""The one loop. It knows a model family and a training method, never which."""

from __future__ import annotations

import logging
import math
import signal
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from tqdm.contrib.logging import logging_redirect_tqdm

from library.cli.errors import Stopped
from library.cli.progress import progress_bar
from library.data.batches.loader import BatchLoader
from library.data.batches.plan import TrainingData
from library.data.records import Batch
from library.models.family import ModelFamily
from library.training.checkpoints.metadata import Metadata
from library.training.checkpoints.options import OutputOptions
from library.training.checkpoints.saved_names import epoch_suffix, step_suffix
from library.training.checkpoints.saves import Saver
from library.training.checkpoints.states import RunIdentity, write_state
from library.training.checkpoints.training_state import StatefulParts
from library.training.distributed.strategy import ParallelStrategy
from library.training.evaluation.modes import ema_scope
from library.training.evaluation.options import SampleOptions, ValidationOptions
from library.training.evaluation.samples import Sampler
from library.training.evaluation.validation import Validator
from library.training.method import TrainingMethod
from library.training.monitoring.losses import LossHistory
from library.training.monitoring.trackers import Tracker
from library.training.nonfinite import NonfiniteSteps
from library.training.objective import Objective
from library.training.optimization.ema import WeightEMA
from library.training.optimization.fused_backward import SkippedUpdates
from library.training.optimization.learning_rates import RateHistory
from library.training.optimization.optimizer_state import start_training
from library.training.options import TrainingOptions
from library.training.signals import StopRequest
from library.training.step_plan import Position, StepPlan

logger = logging.getLogger(__name__)

LOG_INTERVAL = 10  # steps between two waits for the device, to fetch losses


@dataclass(frozen=True)
class TrainerOptions:
    """The options that the loop itself reads."""

    training: TrainingOptions
    output: OutputOptions
    sample: SampleOptions
    validation: ValidationOptions


@dataclass(frozen=True)
class TrainerParts:
    """What a trainer works with; `run.py` puts it together."""

    accelerator: Accelerator
    family: ModelFamily
    method: TrainingMethod
    data: TrainingData
    loader: BatchLoader
    objective: Objective
    plan: StepPlan
    facts: RunIdentity
    strategy: ParallelStrategy
    average: WeightEMA | None
    validator: Validator | None
    skipped_updates: SkippedUpdates | None  # by a backward pass that steps
    lr_schedule: torch.optim.lr_scheduler.LRScheduler
    saver: Saver
    sampler: Sampler | None
    tracker: Tracker | None
    metadata: Metadata


class Trainer:
    """Runs the plan from a position to its end."""

    def __init__(self, parts: TrainerParts, options: TrainerOptions):
        self._parts = parts
        self._options = options
        self._accelerator = parts.accelerator
        self._family = parts.family
        self._method = parts.method
        self._plan = parts.plan
        self._learner = parts.strategy
        self._losses = LossHistory(parts.plan.steps_per_epoch)
        self._rates = RateHistory([group.name for group in parts.strategy.groups], parts.strategy.optimizer)
        self._nonfinite = NonfiniteSteps(parts.accelerator, options.training.max_nonfinite_steps)
        self._validated_at: int | None = None
        self._stop = StopRequest()
        self._stop_signal = 0  # the number of the signal, the same in all processes
        self._is_saved = self._is_state_saved = False  # by the last save
        self._position = Position()

    def run(self) -> None:
        """Trains to the end of the plan and saves."""
        self._set_training_mode()
        start_training(self._learner.optimizer)
        done, is_quiet = self._position.global_step, not self._accelerator.is_local_main_process
        bar = progress_bar(self._plan.num_steps, "steps", initial=done, is_quiet=is_quiet)
        with logging_redirect_tqdm(), bar as self._progress:
            if self._position.global_step == 0:
                self._before_first_step()
            with self._stop.listening():
                while self._position.global_step < self._plan.num_steps:
                    self._run_epoch()
                self._finish()

    def _finish(self) -> None:
        self._log()
        self._validate()
        output = self._options.output
        self._save("", with_state=output.save_state or output.save_state_on_train_end)

    def _run_epoch(self) -> None:
        epoch = self._position.epoch
        self._method.on_epoch_start(epoch)
        for batches, num_in_step in self._steps_of_epoch():
            self._train_step(batches, num_in_step)
            self._position = self._plan.after_step(self._position)
            self._raise_if_stopped()
            self._after_step()
            self._raise_if_stopped()
            if self._position.global_step == self._plan.num_steps:
                break
        if self._position.epoch > epoch:
            self._after_epoch(epoch + 1)

    def _steps_of_epoch(self) -> Iterator[tuple[list[Batch], int]]:
        """For each step left in the epoch, this process's batches, and how many its micro-batches are.

        Those of all processes together: where they do not suffice, some take the last once more, with weight zero.
        """
        position = self._position
        micro_batches = self._parts.data.batches_of_epoch(self._plan.seed, position.epoch)
        groups = list(self._plan.groups(position.step_in_epoch))[: self._plan.num_steps - position.global_step]
        rank, num_processes = self._accelerator.process_index, self._accelerator.num_processes
        mine = [_share(group, rank, num_processes) for group in groups]
        batches = self._parts.loader.batches([micro_batches[index] for indices in mine for index in indices])
        for group, indices in zip(groups, mine, strict=True):
            yield [next(batches) for _ in indices], len(group)

    def _train_step(self, batches: list[Batch], num_in_step: int) -> None:
        """One optimizer step on the mean loss of the step's micro-batches, those of other processes included."""
        self._method.on_step_start(self._position.global_step)
        losses = self._backward(batches, num_in_step)
        # no limit is an infinite one: the norm is what tells whether the step can be applied
        norm = self._learner.reduce_and_clip(self._options.training.max_grad_norm or math.inf)
        total = sum(losses, torch.zeros((), device=self._accelerator.device))
        total, is_finite = self._agree(total, norm)
        step = self._position.global_step + 1
        num_skipped = 0 if self._parts.skipped_updates is None else self._parts.skipped_updates.take()
        self._rates.before_step()
        if is_finite and not num_skipped:
            self._apply(step, total)
        else:
            self._skip_step(step, batches, losses, num_skipped)
        self._rates.after_step(step)
        self._learner.zero_grad()

    def _backward(self, batches: list[Batch], num_in_step: int) -> list[torch.Tensor]:
        """Adds the micro-batches' shares to the gradients; gives their shares of the step's loss."""
        shares = []
        num_mine = len(range(self._accelerator.process_index, num_in_step, self._accelerator.num_processes))
        for index, batch in enumerate(batches):
            loss = self._learner.run(lambda batch=batch: self._parts.objective.training_loss(batch, self._plan.seed))
            loss = (loss if index < num_mine else loss * 0) / num_in_step
            # with --fused_backward_pass the backward pass is the step already
            if not self._options.training.fused_backward_pass or torch.isfinite(loss):
                self._learner.backward(loss, is_last=index == len(batches) - 1)
            shares.append(loss.detach())
        return shares

    def _agree(self, loss: torch.Tensor, norm: torch.Tensor) -> tuple[torch.Tensor, bool]:
        """The sum of the processes' losses, and whether it and the gradients' `norm` are finite.

        All learn whether one of them was asked to stop. It is the one wait for the device in a step, which is applied
        or not by what it says.
        """
        self._stop_signal = self._stop.signal_number
        asked = torch.full_like(loss, bool(self._stop_signal))
        if self._accelerator.num_processes > 1:
            loss, asked = self._accelerator.reduce(torch.stack([loss, asked]), reduction="sum")
        is_finite, is_asked = torch.stack([torch.isfinite(loss) & torch.isfinite(norm), asked > 0]).tolist()
        if is_asked and not self._stop_signal:
            self._stop_signal = signal.SIGTERM
        return loss, is_finite

    def _apply(self, step: int, loss: torch.Tensor) -> None:
        self._learner.step()
        self._parts.lr_schedule.step()
        if self._parts.average is not None:
            self._parts.average.update(step)
        self._losses.add(step, loss)
        self._nonfinite.end_row()

    def _skip_step(self, step: int, batches: list[Batch], losses: list[torch.Tensor], num_params: int) -> None:
        """A step whose loss or gradients are not finite changes nothing but the place in plan and schedule.

        `num_params`: those that a backward pass that steps has left as they were; the others have learned by now.
        """
        self._nonfinite.add(step, batches, losses, num_params)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            self._parts.lr_schedule.step()
        self._learner.skip_step()

    def _before_first_step(self) -> None:
        self._validate()  # the point that the curve starts from
        if self._options.sample.sample_at_first:
            self._draw_samples("000000")

    def _after_step(self) -> None:
        step = self._position.global_step
        self._progress.update(1)
        if step % LOG_INTERVAL == 0:
            self._log()
        if self._nonfinite.are_too_many:
            self._stop_nonfinite()
        every = self._options.validation.validate_every_n_steps
        if every and step % every == 0:
            self._validate()
        every = self._options.sample.sample_every_n_steps
        if every and not self._options.sample.sample_every_n_epochs and step % every == 0:
            self._draw_samples(f"{step:06d}")
        if self._options.output.save_every_n_steps and step % self._options.output.save_every_n_steps == 0:
            self._save(step_suffix(step), with_state=self._options.output.save_state)
            self._prune("step", step)

    def _after_epoch(self, epoch: int) -> None:
        """`epoch` counts from 1."""
        self._log()
        every = self._options.validation.epochs_between
        if every and epoch % every == 0:
            self._validate()
        every = self._options.sample.sample_every_n_epochs
        if every and epoch % every == 0:
            self._draw_samples(f"e{epoch:06d}")
        every = self._plan.epochs_between_saves
        if every and epoch % every == 0 and epoch < self._plan.num_epochs:
            self._save(epoch_suffix(epoch), with_state=self._options.output.save_state)
            self._prune("epoch", epoch)

    def _log(self) -> None:
        """Hands the losses and rates since the last call to the tracker and the progress bar."""
        for step, loss, average in self._losses.fetch():
            self._progress.set_postfix(avr_loss=f"{average:.4f}", refresh=False)
            rates = self._rates.fetch(step)
            if self._parts.tracker is not None:
                self._parts.tracker.scalars({"loss/current": loss, "loss/average": average, **rates}, step)

    def _draw_samples(self, when: str) -> None:
        sampler = self._parts.sampler
        if sampler is not None and (self._accelerator.is_main_process or self._learner.shares_weights):
            self._log()
            with self._shown_weights(), torch.no_grad(), self._accelerator.autocast():
                images = self._learner.run(lambda: sampler.draw(when))
            if self._parts.tracker is not None:
                for name, image in images:
                    self._parts.tracker.image(name, image, self._position.global_step)
        self._accelerator.wait_for_everyone()

    def _save(self, suffix: str, *, with_state: bool) -> None:
        self._log()
        with self._shown_weights(), self._learner.gathered_weights():
            if self._accelerator.is_main_process:
                self._is_saved = self._parts.saver.save(suffix, self._parts.metadata.at(self._position), self._position)
        self._is_state_saved = with_state and self._save_state(suffix)
        if self._accelerator.is_main_process:
            self._parts.saver.upload()
        self._accelerator.wait_for_everyone()

    def _save_state(self, suffix: str) -> bool:
        """Whether it is saved; the first process knows."""
        training = {**self._stateful().state(), "losses": self._losses.state()}
        with self._learner.gathered_weights():
            if not self._accelerator.is_main_process:
                return False
            weights = self._method.state_dict()
            return self._parts.saver.save_state(
                suffix, lambda folder: write_state(folder, self._position, self._parts.facts, weights, training)
            )

    def _prune(self, when: str, number: int) -> None:
        """Removes earlier saves and states that are too old, each where the new one is in place."""
        if self._accelerator.is_main_process:
            if self._is_saved:
                self._parts.saver.prune(when, number, states=False)
            if self._is_state_saved:
                self._parts.saver.prune(when, number, states=True)

    def _raise_if_stopped(self) -> None:
        """Saves and raises `Stopped` when a signal has asked the run to end before its last step."""
        if self._accelerator.num_processes == 1:
            self._stop_signal = self._stop.signal_number
        step = self._position.global_step
        if not self._stop_signal or step == self._plan.num_steps:
            return
        output = self._options.output
        self._save(step_suffix(step), with_state=output.save_state or output.save_state_on_signal)
        state = str(self._parts.saver.state_folder(step_suffix(step))) if self._is_state_saved else None
        raise Stopped(self._stop_signal, state)

    def _shown_weights(self) -> AbstractContextManager[None]:
        return ema_scope(self._learner.optimizer, self._parts.average)

    def _validate(self) -> None:
        """Measures the validation loss, where images are held out and this step has not been measured yet."""
        step = self._position.global_step
        if self._parts.validator is None or self._validated_at == step:
            return
        self._validated_at = step
        self._log()
        with self._shown_weights():
            losses = self._parts.validator.losses(self._learner.run)
        logger.info("validation loss %.4f at step %d", losses["loss/validation"], step)
        if self._parts.tracker is not None:
            self._parts.tracker.scalars(losses, step)

    def _stop_nonfinite(self) -> None:
        """Ends the run with a saved state. Raises `UserError`."""
        suffix = step_suffix(self._position.global_step)
        is_saved = self._save_state(suffix)
        are_finite = self._learner.are_weights_finite()
        if self._accelerator.is_main_process:
            self._parts.saver.upload()
        self._accelerator.wait_for_everyone()
        state = str(self._parts.saver.state_folder(suffix)) if is_saved else None
        raise self._nonfinite.error(state, are_finite)

    def _set_training_mode(self) -> None:
        for module in [self._family.unet, *self._method.trainable_modules()]:
            module.train()
        for encoder in self._family.text_encoders:
            encoder.train(self._method.trains_text_encoders)

    def _stateful(self) -> StatefulParts:
        parts = self._parts
        return StatefulParts(parts.strategy, parts.lr_schedule, self._accelerator.scaler, parts.average)

    def start_at(self, position: Position) -> None:
        """The place in the plan that `run` begins with."""
        self._position = position

    def resume(self, training: Mapping[str, Any], folder: str) -> None:
        """Takes up a state's training state, which is from `folder`. Raises `UserError` where it does not fit."""
        self._stateful().load(training, folder)
        self._losses = LossHistory(self._plan.steps_per_epoch, training["losses"])
        logger.info("weights and optimizer are those of %s", folder)


def _share(group: range, rank: int, num_processes: int) -> list[int]:
    """The micro-batches of a step that a process computes: all processes equally many."""
    padding = -len(group) % num_processes
    return [*group, *[group[-1]] * padding][rank::num_processes]
