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


class ZeroedGradients:
    """Counts gradients that were zeroed because they were non-finite (NaN or inf), without waiting for the device."""

    def __init__(self) -> None:
        self._are_finite: list[torch.Tensor] = []

    def add(self, is_finite: torch.Tensor) -> None:
        self._are_finite.append(is_finite)

    def take(self) -> torch.Tensor | int:
        """How many since the last call, a scalar on the device."""
        import torch

        taken, self._are_finite = self._are_finite, []
        return torch.stack(taken).logical_not().sum() if taken else 0


def step_in_backward(optimizer: torch.optim.Optimizer, max_grad_norm: float) -> ZeroedGradients:
    """Registers hooks that step in each backward pass; no parameter has a gradient after it, and `step` does nothing.

    A non-finite gradient counts as zero, and is counted in the result: to leave its parameter out, the host would have
    to wait for the device at each parameter.
    """
    if max_grad_norm:
        logger.info("%s: --max_grad_norm %g clips each parameter's gradient separately", _FLAG, max_grad_norm)
    zeroed = ZeroedGradients()
    for index, group in enumerate(optimizer.param_groups):
        for param in group["params"]:
            step = partial(_step_for_one, optimizer, index, max_grad_norm, zeroed)
            param.register_post_accumulate_grad_hook(step)
    return zeroed


def _step_for_one(
    optimizer: torch.optim.Optimizer,
    index: int,
    max_grad_norm: float,
    zeroed: ZeroedGradients,
    param: torch.nn.Parameter,
) -> None:
    import torch

    norm = torch.nn.utils.clip_grad_norm_([param], max_grad_norm or math.inf)
    is_finite = torch.isfinite(norm)
    zeroed.add(is_finite)
    assert param.grad is not None  # the hook runs once it is there
    param.grad.copy_(torch.where(is_finite, param.grad, 0.0))
    groups = optimizer.param_groups  # looked up each time: a resume replaces them
    group = groups[index]
    params = group["params"]
    group["params"], optimizer.param_groups = [param], [group]
    try:
        optimizer.step()
    finally:
        group["params"], optimizer.param_groups = params, groups
    param.grad = None
