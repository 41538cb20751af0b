"""Parallel strategies: trained parameters and optimizer, replicated (DDP) or sharded (ZeRO, FSDP) over processes.

The training loop uses them only through `ParallelStrategy`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator
from torch import nn

from library.training.distributed.plans import FSDPConfig, ShardingConfig, ZeroConfig
from library.training.method import ParamGroup, TrainingMethod
from library.training.optimization.optimizer_state import load_exactly
from library.training.options import TrainingOptions

T = TypeVar("T")
MakeOptimizer = Callable[[Sequence[ParamGroup]], torch.optim.Optimizer]


class ParallelStrategy(Protocol):
    """Parameters, gradients and the optimizer. Every method is collective: all processes call it together."""

    shares_weights: bool  # weights are sharded: all processes compute with them together
    groups: Sequence[ParamGroup]  # the parameters of this process
    optimizer: torch.optim.Optimizer

    def run(self, compute: Callable[[], T]) -> T:
        """Runs a computation with the weights: a loss, or sample images."""

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        """Accumulates the gradients of a loss, to be summed over processes. `is_last`: last micro-batch of the step."""

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

    shares_weights = False

    def __init__(self, accelerator: Accelerator, groups: Sequence[ParamGroup], make_optimizer: MakeOptimizer):
        self._accelerator = accelerator
        self._params = all_params(groups)
        self.groups = groups
        self.optimizer = make_optimizer(groups)
        self._stepping = accelerator.prepare(self.optimizer)  # with the gradient scaler of fp16

    def run(self, compute: Callable[[], T]) -> T:
        return compute()

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        self._accelerator.backward(loss)

    def reduce_and_clip(self, max_norm: float) -> torch.Tensor:
        reduce_gradients(self._accelerator, self._params)
        return self._accelerator.clip_grad_norm_(self._params, max_norm)

    def step(self) -> None:
        self._stepping.step()

    def skip_step(self) -> None:
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.update()  # lowers the scale after an overflow

    def zero_grad(self) -> None:
        self._stepping.zero_grad(set_to_none=True)

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


class Root(nn.Module):
    """One module around all trained modules; its forward pass runs any computation with them."""

    def __init__(self, modules: Sequence[nn.Module]):
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def forward(self, compute: Callable[[], T]) -> T:
        return compute()


def all_params(groups: Sequence[ParamGroup]) -> list[nn.Parameter]:
    return [param for group in groups for param in group.params]


def are_all_finite(shards: Sequence[torch.Tensor], accelerator: Accelerator) -> bool:
    """Whether the shards of all processes are finite; collective."""
    num_nonfinite = torch.stack([~torch.isfinite(shard).all() for shard in shards]).sum().to(accelerator.device)
    if accelerator.num_processes > 1:
        num_nonfinite = accelerator.reduce(num_nonfinite, reduction="sum")
    return not num_nonfinite.item()


@contextlib.contextmanager
def swapped_weights(
    modules: Sequence[nn.Module], gather: Callable[[nn.Parameter], torch.Tensor], *, is_reader: bool
) -> Iterator[None]:
    """Inside the context the modules have full parameters, on the CPU; afterwards the sharded ones again.

    Collective, since `gather` is; the parameters are only exchanged in a process that `is_reader`.
    """
    own: list[tuple[nn.Module, str, nn.Parameter]] = []
    full: dict[nn.Parameter, nn.Parameter] = {}
    for module in (each for root in modules for each in root.modules()):
        for name, param in module.named_parameters(recurse=False):
            if param not in full:
                value = gather(param)
                full[param] = nn.Parameter(value.cpu(), requires_grad=False) if is_reader else param
            own.append((module, name, param))
    try:
        if is_reader:
            for module, name, param in own:
                module._parameters[name] = full[param]
        yield
    finally:
        if is_reader:
            for module, name, param in own:
                module._parameters[name] = param


def map_state(
    state: Mapping[str, Any], shapes: Sequence[torch.Size], change: Callable[[int, torch.Tensor], Any]
) -> dict[str, Any]:
    """An optimizer's `state_dict` with `change(index, tensor)` applied to tensors of their parameter's shape.

    Raises `ValueError` for the state of other parameters.
    """
    indices = [index for group in state["param_groups"] for index in group["params"]]
    if indices != list(range(len(shapes))):
        raise ValueError(f"it holds {len(indices)} tensors, not {len(shapes)}")
    changed = {
        index: {
            key: change(index, value)
            if isinstance(value, torch.Tensor) and value.shape == shapes[index] and value.dim() > 0
            else value
            for key, value in entries.items()
        }
        for index, entries in sorted(state["state"].items())
    }
    return {**state, "state": changed}


def ensure_process_group(device: torch.device) -> None:
    """Creates a process group for a run of one process that was started without a launcher."""
    if not torch.distributed.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)


def make_strategy(
    sharding: ShardingConfig | None,
    accelerator: Accelerator,
    method: TrainingMethod,
    make_optimizer: MakeOptimizer,
    training: TrainingOptions,
) -> ParallelStrategy:
    """The strategy for the parameters that the method trains. Raises `UserError` where they cannot be sharded so.

    The weights must be the same in all processes, and restored from the state when resuming. From here on the trained
    parameters are those in the strategy's `groups`.
    """
    groups, modules = method.param_groups(), method.trainable_modules()
    if isinstance(sharding, ZeroConfig):
        from library.training.distributed.zero import DeepSpeedZero

        return DeepSpeedZero(
            sharding,
            accelerator,
            modules,
            groups,
            make_optimizer,
            accumulation=training.gradient_accumulation_steps,
            max_norm=training.max_grad_norm or math.inf,
        )
    if isinstance(sharding, FSDPConfig):
        from library.training.distributed.fsdp import FSDP

        return FSDP(sharding, accelerator, modules, groups, make_optimizer)
    return Replicated(accelerator, groups, make_optimizer)


_BUCKET_ELEMENTS = 2**25  # 128 MiB in float32


def reduce_gradients(accelerator: Accelerator, params: list[torch.nn.Parameter]) -> None:
    """Gradient all-reduce: sums over the processes, in buckets; a missing gradient counts as zeros.

    A parameter without a gradient in every process stays without: the optimizer skips it, as with one process.
    """
    if accelerator.num_processes == 1:
        return
    have = [param.grad is not None for param in params]
    counts = accelerator.reduce(torch.tensor(have, dtype=torch.float32, device=accelerator.device), reduction="sum")
    if not all(have):  # only then wait for the device
        params = [param for param, count in zip(params, counts.tolist(), strict=True) if count]
    for param in params:
        if param.grad is None:
            param.grad = torch.zeros_like(param)
    for bucket in _buckets(params):
        grads = [param.grad for param in bucket if param.grad is not None]  # all have one now
        total = accelerator.reduce(torch.cat([grad.flatten() for grad in grads]), reduction="sum")
        start = 0
        for grad in grads:
            grad.copy_(total[start : start + grad.numel()].view_as(grad))
            start += grad.numel()


def _buckets(params: list[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    """All parameters in buckets of limited size: a second copy of all gradients of a model would be large."""
    bucket: list[torch.nn.Parameter] = []
    for param in params:
        bucket.append(param)
        if sum(each.numel() for each in bucket) >= _BUCKET_ELEMENTS:
            yield bucket
            bucket = []
    if bucket:
        yield bucket
