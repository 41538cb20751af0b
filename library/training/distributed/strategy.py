"""What learns and its optimizer, whichever way they lie over the processes. The loop knows them only through this."""

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
    """Parameters, gradients and the optimizer. Every method is called by all processes together."""

    shares_weights: bool  # each process has a part: whatever computes with the weights, all do together
    groups: Sequence[ParamGroup]  # what each process has of them
    optimizer: torch.optim.Optimizer

    def run(self, compute: Callable[[], T]) -> T:
        """Runs what computes with the weights: a loss, or images."""

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        """Adds the gradients of a loss, of which the processes' sum counts. `is_last`: of this step."""

    def reduce_and_clip(self, max_norm: float) -> torch.Tensor:
        """Sums gradients over the processes and limits their norm, which it gives; not finite: do not step."""

    def step(self) -> None:
        """The optimizer's step."""

    def skip_step(self) -> None:
        """Instead of a step: nothing is learned from the gradients."""

    def zero_grad(self) -> None: ...

    def are_weights_finite(self) -> bool: ...

    def gathered_weights(self) -> AbstractContextManager[None]:
        """Within it the first process has whole weights in its modules, to be read; nothing is computed with them."""

    def gather(self, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """From values that lie as the parameters do, one for each, the whole ones; for the first process."""

    def shard(self, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """From whole values, one for each parameter, what this process has of them."""

    def optimizer_state(self) -> dict[str, Any]:
        """As the optimizer's `state_dict` is where one process holds all, for the first process."""

    def load_optimizer_state(self, state: Mapping[str, Any]) -> None:
        """Raises `ValueError` for the state of other parameters."""


class Replicated:
    """Each process holds all of it, sees a share of the images, and takes the same step.

    Implements `ParallelStrategy`.
    """

    shares_weights = False

    def __init__(self, accelerator: Accelerator, groups: Sequence[ParamGroup], make_optimizer: MakeOptimizer):
        self._accelerator = accelerator
        self._params = all_params(groups)
        self.groups = groups
        self.optimizer = make_optimizer(groups)
        self._stepping = accelerator.prepare(self.optimizer)  # with the scaler of fp16

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
            self._accelerator.scaler.update()  # lowers the scale: it has seen the gradients overflow

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
    """Modules under one, whose forward pass is whatever computes with them."""

    def __init__(self, modules: Sequence[nn.Module]):
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def forward(self, compute: Callable[[], T]) -> T:
        return compute()


def all_params(groups: Sequence[ParamGroup]) -> list[nn.Parameter]:
    return [param for group in groups for param in group.params]


def are_all_finite(parts: Sequence[torch.Tensor], accelerator: Accelerator) -> bool:
    """Whether what the processes hold is finite everywhere; all of them call it with their parts."""
    bad = torch.stack([~torch.isfinite(part).all() for part in parts]).sum().to(accelerator.device)
    if accelerator.num_processes > 1:
        bad = accelerator.reduce(bad, reduction="sum")
    return not bad.item()


@contextlib.contextmanager
def swapped_weights(
    modules: Sequence[nn.Module], whole_of: Callable[[nn.Parameter], torch.Tensor], *, is_reader: bool
) -> Iterator[None]:
    """Within it the parameters of the modules are whole ones, on the CPU; afterwards those they were.

    All processes call it, as `whole_of` gathers; only where `is_reader` are the parameters exchanged.
    """
    own: list[tuple[nn.Module, str, nn.Parameter]] = []
    whole: dict[nn.Parameter, nn.Parameter] = {}
    for module in (each for root in modules for each in root.modules()):
        for name, param in module.named_parameters(recurse=False):
            if param not in whole:
                value = whole_of(param)
                whole[param] = nn.Parameter(value.cpu(), requires_grad=False) if is_reader else param
            own.append((module, name, param))
    try:
        if is_reader:
            for module, name, param in own:
                module._parameters[name] = whole[param]
        yield
    finally:
        if is_reader:
            for module, name, param in own:
                module._parameters[name] = param


def map_state(
    state: Mapping[str, Any], shapes: Sequence[torch.Size], change: Callable[[int, torch.Tensor], Any]
) -> dict[str, Any]:
    """An optimizer's `state_dict`, with what has the shape of its parameter changed. `change` takes index and tensor.

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
    """A run of one process, without a launcher, has a group of its own."""
    if not torch.distributed.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)


def make_strategy(
    plan: ShardingConfig | None,
    accelerator: Accelerator,
    method: TrainingMethod,
    make_optimizer: MakeOptimizer,
    training: TrainingOptions,
) -> ParallelStrategy:
    """Puts what the method trains over the processes. Raises `UserError` where it cannot be shared out as planned.

    Its weights are to be the same in all processes, those of a resumed run already; afterwards the strategy's `groups`
    hold the parameters.
    """
    groups, modules = method.param_groups(), method.trainable_modules()
    if isinstance(plan, ZeroConfig):
        from library.training.distributed.zero import DeepSpeedZero

        return DeepSpeedZero(
            plan,
            accelerator,
            modules,
            groups,
            make_optimizer,
            accumulation=training.gradient_accumulation_steps,
            max_norm=training.max_grad_norm or math.inf,
        )
    if isinstance(plan, FSDPConfig):
        from library.training.distributed.fsdp import FSDP

        return FSDP(plan, accelerator, modules, groups, make_optimizer)
    return Replicated(accelerator, groups, make_optimizer)


_MESSAGE_ELEMENTS = 2**25  # 128 MiB in float32


def reduce_gradients(accelerator: Accelerator, params: list[torch.nn.Parameter]) -> None:
    """Sums gradients over the processes, in few messages; a process that has none where others do adds zeros.

    A parameter that nobody has a gradient for stays without: no optimizer touches it then, as with one process.
    """
    if accelerator.num_processes == 1:
        return
    have = [param.grad is not None for param in params]
    counts = accelerator.reduce(torch.tensor(have, dtype=torch.float32, device=accelerator.device), reduction="sum")
    if not all(have):  # only then is it worth to wait for the device
        params = [param for param, count in zip(params, counts.tolist(), strict=True) if count]
    for param in params:
        if param.grad is None:
            param.grad = torch.zeros_like(param)
    for together in _messages(params):
        total = accelerator.reduce(torch.cat([param.grad.flatten() for param in together]), reduction="sum")
        start = 0
        for param in together:
            param.grad.copy_(total[start : start + param.numel()].view_as(param))
            start += param.numel()


def _messages(params: list[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    """All parameters in pieces of some size: a second copy of a whole model's gradients would be large."""
    together: list[torch.nn.Parameter] = []
    for param in params:
        together.append(param)
        if sum(each.numel() for each in together) >= _MESSAGE_ELEMENTS:
            yield together
            together = []
    if together:
        yield together
