"""Learning-rate schedules: a factor for each optimizer step. A new one is a row of `SCHEDULES`.

Imports no torch: the options take their choices from the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch.optim.lr_scheduler import LambdaLR

    from library.training.options import OptimizerOptions


def _constant(step: int, num_steps: int) -> float:
    return 1.0


def _linear(step: int, num_steps: int) -> float:
    return max(0.0, (num_steps - step) / max(1, num_steps))


def _cosine(step: int, num_steps: int) -> float:
    return max(0.0, 0.5 * (1 + math.cos(math.pi * step / max(1, num_steps))))


# from the step after warm-up, counted from 0, and the number of those steps, to a factor
SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": _constant,
    "constant_with_warmup": _constant,
    "linear": _linear,
    "cosine": _cosine,
}


def warmup_steps(options: OptimizerOptions, num_steps: int) -> int:
    """The number of warm-up steps; a value below 1, or given in percent, is a share of all steps."""
    warmup = options.lr_warmup_steps
    return int(warmup * num_steps) if isinstance(warmup, float) else warmup


def lr_factor(options: OptimizerOptions, num_steps: int) -> Callable[[int], float]:
    """The factor of the learning rate as a function of the optimizer step, counted from 0."""
    warmup = warmup_steps(options, num_steps)
    course = SCHEDULES[options.lr_scheduler]

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        return course(step - warmup, num_steps - warmup)

    return factor


def make_lr_schedule(optimizer: torch.optim.Optimizer, options: OptimizerOptions, num_steps: int) -> LambdaLR:
    """A schedule that is stepped once per optimizer step, whatever the accumulation or number of processes."""
    from torch.optim.lr_scheduler import LambdaLR

    return LambdaLR(optimizer, lr_factor(options, num_steps))
