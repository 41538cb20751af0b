"""FSDP: weights, gradients and optimizer states are sharded over the processes, by PyTorch's `fully_shard` (FSDP2).

The weights of a unit are all-gathered before its computation and freed afterwards; gradients are reduce-scattered in
each backward pass ("PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel", Zhao et al., 2304.11277).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from library.cli.errors import UserError, listed
from library.training.distributed.plans import FSDPConfig
from library.training.distributed.strategy import (
    MakeOptimizer,
    Root,
    all_params,
    are_all_finite,
    ensure_process_group,
    map_state,
    swapped_weights,
)
from library.training.method import ParamGroup
from library.training.optimization.optimizer_state import load_exactly

T = TypeVar("T")


class FSDP:
    """The `ParallelStrategy` of FSDP; the optimizer updates sharded `DTensor` parameters."""

    shares_weights = True

    def __init__(
        self,
        config: FSDPConfig,
        accelerator: Accelerator,
        modules: Sequence[nn.Module],
        groups: Sequence[ParamGroup],
        make_optimizer: MakeOptimizer,
    ):
        """modules: contain the groups' parameters. Raises `UserError` for units that are not in them."""
        ensure_process_group(accelerator.device)
        self._accelerator = accelerator
        self._modules = list(modules)
        self._mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        self._root = Root(modules)
        self._offloads = config.offloads
        names = {id(param): name for name, param in _named_params(modules)}
        names_in_groups = [[names[id(param)] for param in group.params] for group in groups]
        self._shard_modules(config)
        self.groups: Sequence[ParamGroup] = [
            replace(group, params=[module.get_parameter(name) for module, name in inside])
            for group, inside in zip(groups, names_in_groups, strict=True)
        ]
        self._params = all_params(self.groups)
        self.optimizer = make_optimizer(self.groups)

    def _shard_modules(self, config: FSDPConfig) -> None:
        policy = OffloadPolicy()
        if config.offloads:
            policy = CPUOffloadPolicy(pin_memory=self._accelerator.device.type != "cpu")
        for unit in _units(config, self._modules):
            fully_shard(unit, mesh=self._mesh, reshard_after_forward=config.frees_after_forward, offload_policy=policy)
        fully_shard(self._root, mesh=self._mesh, offload_policy=policy)

    def run(self, compute: Callable[[], T]) -> T:
        try:
            return self._root(compute)
        finally:
            if not torch.is_grad_enabled():  # otherwise the backward pass frees the weights
                self._free()

    def _free(self) -> None:
        for module in self._root.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        (loss * self._accelerator.num_processes).backward()  # FSDP averages the gradients

    def reduce_and_clip(self, max_norm: float) -> torch.Tensor:
        shards = [_sharded(param.grad).to_local() for param in self._params if param.grad is not None]
        squares = torch.nn.utils.get_total_norm(shards).to(self._accelerator.device, torch.float32) ** 2
        if self._accelerator.num_processes > 1:
            squares = self._accelerator.reduce(squares, reduction="sum")
        norm = squares.sqrt()
        factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
        for shard in shards:
            shard.mul_(factor.to(shard.device, shard.dtype))
        return norm

    def step(self) -> None:
        self.optimizer.step()

    def skip_step(self) -> None:
        pass

    def zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def are_weights_finite(self) -> bool:
        return are_all_finite([_sharded(param).to_local() for param in self._params], self._accelerator)

    def gathered_weights(self) -> AbstractContextManager[None]:
        return swapped_weights(self._modules, self._gather_one, is_reader=self._accelerator.is_main_process)

    def _gather_one(self, value: torch.Tensor) -> torch.Tensor:
        """Sharded value -> full tensor on the device (all-gather)."""
        if not isinstance(value, DTensor):
            return value.detach()
        shard = _sharded(value.detach()).to_local().to(self._accelerator.device)
        on_device = DTensor.from_local(
            shard, self._mesh, value.placements, run_check=False, shape=value.shape, stride=value.stride()
        )
        return on_device.full_tensor()

    def gather(self, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        gathered = []
        for value in values:
            full = self._gather_one(value)
            if self._accelerator.is_main_process:
                gathered.append(full.cpu())
        return gathered

    def shard(self, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [self._shard_one(index, value) for index, value in enumerate(values[: len(self._params)])]

    def _shard_one(self, index: int, value: torch.Tensor) -> torch.Tensor:
        shard = distribute_tensor(
            value.to(self._accelerator.device), self._mesh, _sharded(self._params[index]).placements, src_data_rank=None
        )
        return shard.cpu() if self._offloads else shard

    def optimizer_state(self) -> dict[str, Any]:
        def gathered(index: int, value: torch.Tensor) -> torch.Tensor | None:
            full = self._gather_one(value)
            return full.cpu() if self._accelerator.is_main_process else None

        return map_state(self.optimizer.state_dict(), self._shapes(), gathered)

    def load_optimizer_state(self, state: Mapping[str, Any]) -> None:
        load_exactly(self.optimizer, map_state(state, self._shapes(), self._shard_one))

    def _shapes(self) -> list[torch.Size]:
        return [param.shape for param in self._params]


def _named_params(modules: Sequence[nn.Module]) -> Iterator[tuple[tuple[nn.Module, str], nn.Parameter]]:
    for root in modules:
        for name, param in root.named_parameters(remove_duplicate=False):
            yield (root, name), param


def _sharded(value: torch.Tensor) -> DTensor:
    assert isinstance(value, DTensor)
    return value


def _units(config: FSDPConfig, modules: Sequence[nn.Module]) -> list[nn.Module]:
    """The FSDP units: modules whose weights are gathered and freed together, inner ones first."""
    inside = [each for root in modules for each in reversed(list(root.modules()))]
    if config.units == "size":
        return list(_large_blocks(modules, config.unit_size))
    if config.units == "whole":
        return []
    classes = set(config.unit_classes)
    if not classes:
        classes = {name for each in inside for name in getattr(each, "_no_split_modules", None) or ()}
    found = [each for each in inside if type(each).__name__ in classes]
    missing = set(config.unit_classes) - {type(each).__name__ for each in found}
    if missing or not found:
        known = sorted({type(each).__name__ for each in inside if any(True for _ in each.parameters())})
        raise UserError(
            f"accelerate is configured for FSDP with units of {', '.join(sorted(missing or classes)) or 'no class'},"
            " which the model does not have",
            hint=f"its modules are {listed(known, 20)} (fsdp_transformer_layer_cls_to_wrap)",
        )
    return found


def _large_blocks(modules: Sequence[nn.Module], size: int) -> Iterator[nn.Module]:
    """Disjoint blocks with more parameters than `size`, inner ones first.

    A block is a member of an `nn.ModuleList`: no code outside a block uses its weights, which are not always gathered.
    """
    lists = [each for root in modules for each in root.modules() if isinstance(each, nn.ModuleList)]
    taken: set[nn.Parameter] = set()
    for block in [block for each in reversed(lists) for block in each]:
        own = [param for param in block.parameters() if param not in taken]
        if sum(param.numel() for param in own) > size:
            taken.update(own)
            yield block
