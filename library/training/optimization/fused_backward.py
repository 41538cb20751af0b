"""Fused backward pass: the optimizer updates each parameter as soon as its gradient is computed.

The gradients of all parameters are then never in memory together ("Full Parameter Fine-tuning for Large Language
Models with Limited Resources", Lv et al., 2306.09782). The trained weights are the same, bit for bit, except for
gradient clipping: the norm of all gradients is not known when the first parameter is updated, so each parameter's
gradient is clipped by its own norm.
"""

from __future__ import annotations

import logging
import math
from functools import partial
from typing import TYPE_CHECKING

from library.cli.checks import Findings
from library.cli.errors import UserError
from library.training.optimization.optimizer_table import find_optimizer
from library.training.optimization.options import OptimizerOptions
from library.training.options import TrainingOptions

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_FLAG = "--fused_backward_pass"
OPTIMIZERS = ("AdamW", "AdaFactor")  # each parameter's update depends on no other parameter


def fused_backward_findings(training: TrainingOptions, optimizer: OptimizerOptions) -> Findings:
    """Optimizers that cannot update one parameter at a time. Imports no torch."""
    if not training.fused_backward_pass:
        return
    name = optimizer.optimizer
    if find_optimizer(name) not in [find_optimizer(known) for known in OPTIMIZERS]:
        yield UserError(
            f"{_FLAG} with --optimizer_type {name}: this optimizer cannot update one parameter at a time",
            hint=f"use {' or '.join(OPTIMIZERS)}, or leave {_FLAG} out",
        )


def fused_processes_findings(training: TrainingOptions, num_processes: int) -> Findings:
    """Several processes, of which each would update its weights before the gradient all-reduce."""
    if training.fused_backward_pass and num_processes > 1:
        yield UserError(
            f"{_FLAG} with {num_processes} processes: gradients are summed (all-reduced) after the backward pass",
            hint="leave it out, or train with one process",
        )


class SkippedUpdates:
    """Counts parameters that were not updated because their gradients were non-finite (NaN or inf)."""

    def __init__(self) -> None:
        self._num_params = 0

    def add(self) -> None:
        self._num_params += 1

    def take(self) -> int:
        """How many since the last call."""
        taken, self._num_params = self._num_params, 0
        return taken


def step_in_backward(optimizer: torch.optim.Optimizer, max_grad_norm: float) -> SkippedUpdates:
    """Registers hooks that step in each backward pass; no parameter has a gradient after it, and `step` does nothing.

    A parameter whose gradient is non-finite is not updated, and is counted in the result.
    """
    if max_grad_norm:
        logger.info("%s: --max_grad_norm %g clips each parameter's gradient separately", _FLAG, max_grad_norm)
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
    groups = optimizer.param_groups  # looked up each time: a resume replaces them
    group = groups[index]
    params = group["params"]
    group["params"], optimizer.param_groups = [param], [group]
    try:
        optimizer.step()
    finally:
        group["params"], optimizer.param_groups = params, groups
    param.grad = None
