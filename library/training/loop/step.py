"""One optimizer step: losses, gradients, and whether it is applied. The processes agree on that, and on stopping."""

from __future__ import annotations

import logging
import math
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator

from library.training.checkpoints.training_state import StatefulParts
from library.training.distributed.processes import lost_process
from library.training.distributed.strategy import ParallelStrategy, all_params, make_strategy
from library.training.inputs.run_data import LoadedBatch, Objective
from library.training.loop.nonfinite import NonfiniteSteps
from library.training.method import TrainingMethod
from library.training.monitoring.gradient_norms import GradientNorms
from library.training.monitoring.losses import LossHistory
from library.training.monitoring.performance import StepTimes
from library.training.optimization.ema import WeightEMA
from library.training.optimization.fused_backward import ZeroedGradients, step_in_backward
from library.training.optimization.learning_rates import RateHistory
from library.training.optimization.lr_schedules import make_lr_schedule
from library.training.optimization.optimizers import make_optimizer
from library.training.optimization.options import AverageOptions, OptimizerOptions
from library.training.options import TrainingOptions
from library.training.run_setup import RunSetup
from library.training.signals import StopRequest

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoggedStep:
    """What the curves show of a step: its loss, the average over the last epoch's steps, learning rates and norms."""

    step: int
    loss: float
    average: float
    rates: dict[str, float]
    norms: dict[str, float]


class Step:
    """Makes one optimizer step on the mean loss of its micro-batches, those of all processes together.

    A step whose loss or gradients are not finite is skipped: it changes nothing but the position in plan and schedule.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        method: TrainingMethod,
        objective: Objective,
        stateful: StatefulParts,
        options: TrainingOptions,
        *,
        seed: int,
        steps_per_epoch: int,
        zeroed: ZeroedGradients | None = None,
    ):
        """`zeroed`: the gradients of a backward pass that steps (`--fused_backward_pass`) that were not finite."""
        self._accelerator = accelerator
        self._method = method
        self._objective = objective
        self._stateful = stateful
        self._options = options
        self._seed = seed
        self._zeroed = zeroed
        self._steps_per_epoch = steps_per_epoch
        self._losses = LossHistory(steps_per_epoch)
        self._rates = RateHistory([group.name for group in self.strategy.groups], self.strategy.optimizer)
        self._norms = GradientNorms()
        self.times = StepTimes()
        self.nonfinite = NonfiniteSteps(accelerator, options.max_nonfinite_steps)
        self.stop_request = StopRequest()
        self._agreed_signal = 0
        self.whole_step: int | None = 0  # the last step that weights and state have in whole; None within an update
        self.failure: BaseException | None = None  # of this process, where all of them know that one has failed

    @property
    def strategy(self) -> ParallelStrategy:
        return self._stateful.strategy

    @property
    def average(self) -> WeightEMA | None:
        return self._stateful.average

    @property
    def stop_signal(self) -> int:
        """The number of the signal that asks the run to stop, the same in all processes; 0 without one."""
        is_alone = self._accelerator.num_processes == 1
        return self.stop_request.signal_number if is_alone else self._agreed_signal

    def __call__(self, fetch: Callable[[], list[LoadedBatch]], num_in_step: int, step: int) -> None:
        """Step `step`, counted from 1, on this process's batches of the step's `num_in_step` micro-batches.

        `fetch` gives them. Raises in all processes what fails in one, where the weights are not sharded.
        """
        with self.times.step():
            self._make(fetch, num_in_step, step)

    def _make(self, fetch: Callable[[], list[LoadedBatch]], num_in_step: int, step: int) -> None:
        batches, losses, failure = [], [], None
        try:
            self._method.on_step_start(step - 1)
            with self.times.fetch():
                batches = fetch()
            losses = self._backward(batches, num_in_step)
        except Exception as error:
            if self._accelerator.num_processes == 1 or self.strategy.shards_weights:
                raise
            traceback.clear_frames(error.__traceback__)  # they hold the step's activations
            failure = error
        # no limit is an infinite one: the norm is what tells whether the step can be applied
        norm = self.strategy.reduce_and_clip(self._options.max_grad_norm or math.inf)
        total = sum(losses, torch.zeros((), device=self._accelerator.device))
        total, is_finite, num_zeroed = self._agree(total, norm, failure)
        if is_finite and not num_zeroed:
            self._apply(step, total, norm)
        else:
            self.nonfinite.add(step, batches, losses, num_zeroed)
            self._skip(step)
        self.strategy.zero_grad()
        self.times.count(sum(batch.num_images for batch in batches) * self._accelerator.num_processes)

    def _backward(self, batches: list[LoadedBatch], num_in_step: int) -> list[torch.Tensor]:
        """Accumulates the gradients of the micro-batches; gives their shares of the step's loss."""
        shares = []
        num_mine = len(range(self._accelerator.process_index, num_in_step, self._accelerator.num_processes))
        for index, batch in enumerate(batches):
            loss = self.strategy.run(partial(self._objective.training_loss, batch, self._seed))
            loss = (loss if index < num_mine else loss * 0) / num_in_step
            # with --fused_backward_pass the backward pass is the step already
            is_fused = self._options.fused_backward_pass
            if not is_fused or torch.isfinite(loss):
                self.whole_step = None if is_fused else self.whole_step
                self.strategy.backward(loss, is_last=index == len(batches) - 1)
            self._objective.after_backward()
            shares.append(loss.detach())
        return shares

    def _agree(
        self, loss: torch.Tensor, norm: torch.Tensor, failure: Exception | None
    ) -> tuple[torch.Tensor, bool, int]:
        """The sum of the processes' losses, whether it and the gradients' `norm` are finite, and how many were zeroed.

        All processes get to know whether one of them was asked to stop, or has failed, which is raised here. It is the
        one wait for the device in a step, which is applied or skipped by what it says.
        """
        self._agreed_signal = self.stop_request.signal_number
        stops, fails = (torch.full_like(loss, bool(each)) for each in (self._agreed_signal, failure))
        if self._accelerator.num_processes > 1:
            loss, stops, fails = self._accelerator.reduce(torch.stack([loss, stops, fails]), reduction="sum")
        is_finite = torch.isfinite(loss) & torch.isfinite(norm)
        zeroed = torch.zeros_like(loss) + (0 if self._zeroed is None else self._zeroed.take())
        facts = torch.stack([is_finite.to(loss), stops, fails, zeroed])
        is_finite, is_stopped, is_failed, num_zeroed = facts.tolist()
        if is_failed:
            self.failure = failure or lost_process()
            raise self.failure
        if is_stopped and not self._agreed_signal:
            self._agreed_signal = signal.SIGTERM
        return loss, bool(is_finite), int(num_zeroed)

    def _apply(self, step: int, loss: torch.Tensor, norm: torch.Tensor) -> None:
        self.whole_step = None
        if not self._options.fused_backward_pass:
            self._norms.add(step, norm, [] if self.strategy.shards_weights else all_params(self.strategy.groups))
        self._rates.before_step()
        self.strategy.step()
        self._method.after_update()
        self._stateful.lr_schedule.step()
        if self.average is not None:
            self.average.update(step)
        self._losses.add(step, loss)
        self.nonfinite.end_row()
        self._rates.after_step(step)
        self.whole_step = step

    def _skip(self, step: int) -> None:
        self.whole_step = None
        self._rates.before_step()
        self.strategy.skip_step()
        self._stateful.lr_schedule.step()
        self._rates.after_step(step)
        self.whole_step = step

    def logged(self) -> Iterator[LoggedStep]:
        """What there is to log of the applied steps since the last call; waits for the device once."""
        norms = self._norms.fetch()
        for step, loss, average in self._losses.fetch():
            yield LoggedStep(step, loss, average, self._rates.fetch(step), norms.get(step, {}))

    def state(self) -> dict[str, Any]:
        """What a state holds beside the weights, for the first process; all call it together, after `logged`."""
        return {**self._stateful.state(), "losses": self._losses.state()}

    def load(self, state: Mapping[str, Any], folder: str) -> None:
        """Resumes from a `state`, which is from `folder`. Raises `UserError` where it does not fit."""
        self._stateful.load(state, folder)
        self._losses = LossHistory(self._steps_per_epoch, state["losses"])
        logger.info("weights and optimizer are those of %s", folder)


def make_step(run: RunSetup, method: TrainingMethod, objective: Objective) -> Step:
    """Optimizer, learning-rate schedule and EMA of the trained parameters, which the strategy shards from here on."""
    options, accelerator, sharding = run.options, run.accelerator, run.context.sharding
    training, optimizing, averaging = options[TrainingOptions], options[OptimizerOptions], options[AverageOptions]
    strategy = make_strategy(sharding, accelerator, method, lambda groups: make_optimizer(optimizing, groups))
    zeroed = None
    if training.fused_backward_pass:
        zeroed = step_in_backward(strategy.optimizer, training.max_grad_norm)
    average = WeightEMA(all_params(strategy.groups), averaging) if averaging.ema else None
    lr_schedule = make_lr_schedule(strategy.optimizer, optimizing, run.plan.num_steps)
    return Step(
        accelerator,
        method,
        objective,
        StatefulParts(strategy, lr_schedule, accelerator.scaler, average),
        training,
        seed=run.plan.seed,
        steps_per_epoch=run.plan.steps_per_epoch,
        zeroed=zeroed,
    )
