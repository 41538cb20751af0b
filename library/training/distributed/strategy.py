"""Parallel strategies: trained parameters and optimizer, replicated (DDP) or sharded (FSDP) over processes.

The training loop uses them only through `ParallelStrategy`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator
from torch import nn

from library.training.distributed.all_reduce import GradientAllReduce
from library.training.distributed.sharding_config import ShardingConfig
from library.training.method import ParamGroup, TrainingMethod
from library.training.optimization.optimizer_state import load_exactly

T = TypeVar("T")
MakeOptimizer = Callable[[Sequence[ParamGroup]], torch.optim.Optimizer]


class ParallelStrategy(Protocol):
    """Parameters, gradients and the optimizer. Every method is collective: all processes call it together."""

    shards_weights: bool  # weights are sharded: all processes compute with them together
    groups: Sequence[ParamGroup]  # the parameters of this process
    optimizer: torch.optim.Optimizer

    def run(self, compute: Callable[[], T]) -> T:
        """Runs a computation with the weights: a loss, or sample images."""

    def backward(self, loss: torch.Tensor, *, is_last: bool = False) -> None:
        """Accumulates the gradients of a loss, to be summed over processes; `is_last`: of a step's."""

    def reduce_and_clip(self, max_norm: float) -> torch.Tensor:
        """All-reduces gradients and clips their norm. Returns the norm; where it is NaN or inf, skip the step."""

    def step(self) -> None:
        """The optimizer step."""

    def skip_step(self) -> None:
        """Instead of `step`: discards the gradients (the fp16 gradient scaler lowers its scale)."""

    def zero_grad(self) -> None: ...

    def are_weights_finite(self) -> bool: ...

    def gathered_weights(self) -> AbstractContextManager[None]:
        """Inside the context the first process has the full weights in its modules, for reading only."""

    def gather(self, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Full tensors of values sharded as the parameters are, one for each; for the first process."""

    def shard(self, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """This process's shards of full tensors, one for each parameter."""

    def optimizer_state(self) -> dict[str, Any]:
        """The unsharded `state_dict` of the optimizer, for the first process."""

    def load_optimizer_state(self, state: Mapping[str, Any]) -> None:
        """Loads an unsharded `state_dict`. Raises `ValueError` for the state of other parameters."""


class Replicated:
    """Data parallel (as DDP): every process holds a full copy, computes its own batches, and takes the same step.

    Implements `ParallelStrategy`.
    """

    shards_weights = False

    def __init__(self, accelerator: Accelerator, groups: Sequence[ParamGroup], make_optimizer: MakeOptimizer):
        self._accelerator = accelerator
        self._params = all_params(groups)
        self.groups = groups
        self.optimizer = make_optimizer(groups)
        self._scaler: torch.amp.GradScaler | None = accelerator.scaler  # of fp16
        self._all_reduce = GradientAllReduce(self._params) if accelerator.num_processes > 1 else None

    def run(self, compute: Callable[[], T]) -> T:
        return compute()

    def backward(self, loss: torch.Tensor, *, is_last: bool = False) -> None:
        if is_last and self._all_reduce is not None:
            self._all_reduce.expect_last_backward()
        self._accelerator.backward(loss)

    def reduce_and_clip(self, max_norm: float) -> torch.Tensor:
        if self._all_reduce is not None:
            self._all_reduce.finish()
        if self._scaler is not None:
            self._scaler.unscale_(self.optimizer)
        return torch.nn.utils.clip_grad_norm_(self._params, max_norm)

    def step(self) -> None:
        step_and_scale(self.optimizer, self._scaler)

    def skip_step(self) -> None:
        skip_and_scale(self.optimizer, self._scaler)

    def zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def are_weights_finite(self) -> bool:
        return all(bool(torch.isfinite(param).all()) for param in self._params)

    def gathered_weights(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def gather(self, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return list(values)

    def shard(self, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return list(values)

    def optimizer_state(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_optimizer_state(self, state: Mapping[str, Any]) -> None:
        load_exactly(self.optimizer, state)


def step_and_scale(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None) -> None:
    """An optimizer step on unscaled gradients that are finite; the scale of fp16 rises after many of them."""
    optimizer.step()  # not by the scaler: that waits for the device to learn what the norm has said already
    if scaler is not None:
        scaler.update()


def skip_and_scale(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None) -> None:
    """Instead of a step; the scale of fp16 falls after an overflow."""
    # the LR schedule follows the run's position: PyTorch would warn that it is stepped before the optimizer
    optimizer._opt_called = True  # type: ignore[attr-defined]
    if scaler is not None:
        scaler.update()


def all_params(groups: Sequence[ParamGroup]) -> list[nn.Parameter]:
    return [param for group in groups for param in group.params]


def make_strategy(
    sharding: ShardingConfig | None,
    accelerator: Accelerator,
    method: TrainingMethod,
    make_optimizer: MakeOptimizer,
) -> ParallelStrategy:
    """The strategy for the parameters that the method trains. Raises `UserError` where they cannot be sharded so.

    The weights must be the same in all processes, and restored from the state when resuming. From here on the trained
    parameters are those in the strategy's `groups`.
    """
    groups, modules = method.param_groups(), method.trainable_modules()
    if sharding is not None:
        from library.training.distributed.fsdp import FSDP

        return FSDP(sharding, accelerator, modules, groups, make_optimizer)
    return Replicated(accelerator, groups, make_optimizer)
