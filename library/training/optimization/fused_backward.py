"""The optimizer's steps inside the backward pass: each parameter learns as soon as its gradient is there.

Gradients of all parameters are then never in memory together ("Full Parameter Fine-tuning for Large Language Models
with Limited Resources", Lv et al., 2306.09782). What is learned is the same, bit for bit, but for the limit of the
gradient's norm: the norm of the whole is not known when the first parameter learns, so that each parameter's own is
limited.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from library.cli.errors import UserError
from library.training.optimization.optimizer_table import find_optimizer
from library.training.optimization.options import OptimizerOptions
from library.training.options import TrainingOptions

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_FLAG = "--fused_backward_pass"
OPTIMIZERS = ("AdamW", "AdaFactor")  # what they do to one parameter depends on no other


def fused_backward_problems(training: TrainingOptions, optimizer: OptimizerOptions) -> Iterator[UserError]:
    """What can be said without a device. Imports no torch."""
    if not training.fused_backward_pass:
        return
    name = optimizer.optimizer
    if find_optimizer(name) not in [find_optimizer(known) for known in OPTIMIZERS]:
        yield UserError(
            f"{_FLAG} with --optimizer_type {name}: it cannot step for one parameter at a time",
            hint=f"use {' or '.join(OPTIMIZERS)}, or leave {_FLAG} out",
        )


def check_fused_backward(training: TrainingOptions, num_processes: int) -> None:
    """Raises `UserError` where several processes would each go their own way."""
    if training.fused_backward_pass and num_processes > 1:
        raise UserError(
            f"{_FLAG} with {num_processes} processes: gradients are summed when all are there",
            hint="leave it out, or train with one process",
        )


class SkippedUpdates:
    """The weights that backward passes left as they were, as their gradients were not finite."""

    def __init__(self) -> None:
        self._num_params = 0

    def add(self) -> None:
        self._num_params += 1

    def take(self) -> int:
        """How many since the last call."""
        taken, self._num_params = self._num_params, 0
        return taken


def step_in_backward(optimizer: torch.optim.Optimizer, max_grad_norm: float) -> SkippedUpdates:
    """From now on, a backward pass steps; afterwards no parameter has a gradient, and `step` finds nothing to do.

    A parameter whose gradient is not finite is left as it is, and counted in what is given back.
    """
    if max_grad_norm:
        logger.info("%s: --max_grad_norm %g limits the gradient of each parameter by itself", _FLAG, max_grad_norm)
    skipped_updates = SkippedUpdates()
    for index, group in enumerate(optimizer.param_groups):
        for param in group["params"]:
            step = partial(_step_for_one, optimizer, index, max_grad_norm, skipped_updates)
            param.register_post_accumulate_grad_hook(step)
    return skipped_updates


def _step_for_one(
    optimizer: torch.optim.Optimizer,
    index: int,
    max_grad_norm: float,
    skipped_updates: SkippedUpdates,
    param: torch.nn.Parameter,
) -> None:
    import torch

    norm = torch.nn.utils.clip_grad_norm_([param], max_grad_norm or math.inf)
    if not torch.isfinite(norm):
        skipped_updates.add()
        param.grad = None
        return
    groups = optimizer.param_groups  # looked up each time: a resume makes new ones
    group = groups[index]
    params = group["params"]
    group["params"], optimizer.param_groups = [param], [group]
    try:
        optimizer.step()
    finally:
        group["params"], optimizer.param_groups = params, groups
    param.grad = None
