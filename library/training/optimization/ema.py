"""EMA: the exponential moving average of the trained weights (`--ema`)."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from library.cli.checks import Findings
from library.cli.errors import UserError, plural
from library.training.optimization.options import AverageOptions

logger = logging.getLogger(__name__)


def average_findings(options: AverageOptions, num_steps: int) -> Findings:
    """An EMA that would not start within a run of `num_steps`."""
    if options.ema and options.ema_start_step > num_steps:
        yield (
            f"--ema does nothing: it starts at step {options.ema_start_step} (--ema_start_step), and the run has only"
            f" {plural(num_steps, 'step')}"
        )


class WeightEMA:
    """An exponential moving average (EMA) of parameters, in float32, on the device of each parameter.

    It starts as a copy of the weights after step `ema_start_step` (at the earliest the first). At the n-th step after
    that, average = d * average + (1 - d) * weights with d = min(decay, (1 + n) / (10 + n)): the decay warms up to
    `decay`, so that short runs forget their early weights too.
    """

    def __init__(self, params: Sequence[torch.nn.Parameter], options: AverageOptions):
        self._params = list(params)
        self._options = options
        self._averages: list[torch.Tensor] = []  # empty until it starts
        self._num_updates = 0

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Call after optimizer step `step`, counted from 1."""
        if step < self._options.ema_start_step:
            return
        if not self._averages:
            self._averages = [param.detach().to(torch.float32, copy=True) for param in self._params]
            return
        self._num_updates += 1
        decay = min(self._options.ema_decay, (1 + self._num_updates) / (10 + self._num_updates))
        weights = [param.detach().float() for param in self._params]
        get_ema_multi_avg_fn(decay)(self._averages, weights, None)

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside the context the parameters hold the averaged values; afterwards their own again, bit for bit."""
        if not self._averages:
            yield
            return
        own = [param.detach().clone() for param in self._params]
        _set(self._params, self._averages)
        try:
            yield
        finally:
            _set(self._params, own)

    def state(self) -> dict[str, Any]:
        return {"averages": self._averages, "num_updates": self._num_updates}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restores a `state`. Raises `UserError` when it belongs to other parameters."""
        averages = state["averages"]
        if averages and [each.shape for each in averages] != [param.shape for param in self._params]:
            raise UserError(
                "--resume: the state's moving average (EMA) has other shapes than the trained weights",
                hint="use the options of the run that saved it, or leave --ema out",
            )
        self._averages = [
            average.to(param.device, copy=True) for average, param in zip(averages, self._params, strict=False)
        ]
        self._num_updates = state["num_updates"]


@torch.no_grad()
def _set(params: Sequence[torch.nn.Parameter], values: Sequence[torch.Tensor]) -> None:
    for param, value in zip(params, values, strict=True):
        param.copy_(value)
