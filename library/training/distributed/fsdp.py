"""FSDP: weights, gradients and optimizer states are sharded over the processes, by PyTorch's `fully_shard` (FSDP2).

The weights of a unit are all-gathered before its computation and freed afterwards; gradients are reduce-scattered in
each backward pass ("PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel", Zhao et al., 2304.11277).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from library.cli.errors import UserError, listed
from library.training.distributed.sharding_config import ShardingConfig
from library.training.distributed.strategy import MakeOptimizer, all_params, skip_and_scale, step_and_scale
from library.training.method import ParamGroup
from library.training.optimization.optimizer_state import load_exactly

T = TypeVar("T")


class _Root(nn.Module):
    """One module around all trained modules; its forward pass runs any computation with them."""

    def __init__(self, modules: Sequence[nn.Module]):
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def forward(self, compute: Callable[[], T]) -> T:
        return compute()


class FSDP:
    """The `ParallelStrategy` of FSDP; the optimizer updates sharded `DTensor` parameters."""

    shards_weights = True

    def __init__(
        self,
        config: ShardingConfig,
        accelerator: Accelerator,
        modules: Sequence[nn.Module],
        groups: Sequence[ParamGroup],
        make_optimizer: MakeOptimizer,
    ):
        """modules: contain the groups' parameters. Raises `UserError` for units that are not in them."""
        _ensure_process_group(accelerator.device)
        self._accelerator = accelerator
        self._scaler = accelerator.scaler  # the gradient scaler of fp16
        self._norm = nn.Parameter(torch.zeros((), device=accelerator.device))
        self._norm_holder = torch.optim.SGD([self._norm])  # never steps: the scaler takes optimizers
        self._modules = list(modules)
        self._mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        self._root = _Root(modules)
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

    def _shard_modules(self, config: ShardingConfig) -> None:
        policy = OffloadPolicy()
        if config.offloads:
            policy = CPUOffloadPolicy(pin_memory=self._accelerator.device.type != "cpu")
        for unit in _units(config, self._modules):
            fully_shard(
                unit, mesh=self._mesh, reshard_after_forward=config.reshard_after_forward, offload_policy=policy
            )
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

    def backward(self, loss: torch.Tensor, *, is_last: bool = False) -> None:
        loss = loss * self._accelerator.num_processes  # FSDP averages the gradients
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()

    def reduce_and_clip(self, max_norm: float) -> torch.Tensor:
        shards = [_sharded(param.grad).to_local() for param in self._params if param.grad is not None]
        squares = torch.nn.utils.get_total_norm(shards).to(self._accelerator.device, torch.float32) ** 2
        if self._accelerator.num_processes > 1:
            squares = self._accelerator.reduce(squares, reduction="sum")
        norm = squares.sqrt()
        factor = self._unscale(norm)
        factor *= torch.clamp(max_norm / (norm + 1e-6), max=1.0)
        for shard in shards:
            shard.mul_(factor.to(shard.device, shard.dtype))
        return norm

    def _unscale(self, norm: torch.Tensor) -> torch.Tensor:
        """Divides the norm by the scale of fp16, and gives the factor that does the same to gradients.

        The scaler looks for an overflow in the norm instead of in gradients: it is the same in all processes, and on
        the device where they are offloaded.
        """
        if self._scaler is None:
            return torch.ones_like(norm)
        self._norm.grad = norm
        self._scaler.unscale_(self._norm_holder)
        return 1 / self._scaler.scale(torch.ones_like(norm))

    def step(self) -> None:
        step_and_scale(self.optimizer, self._scaler)

    def skip_step(self) -> None:
        skip_and_scale(self.optimizer, self._scaler)

    def zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def are_weights_finite(self) -> bool:
        return _are_all_finite([_sharded(param).to_local() for param in self._params], self._accelerator)

    def gathered_weights(self) -> AbstractContextManager[None]:
        return _swapped_weights(self._modules, self._gather_one, is_reader=self._accelerator.is_main_process)

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

        return _map_state(self.optimizer.state_dict(), self._shapes(), gathered)

    def load_optimizer_state(self, state: Mapping[str, Any]) -> None:
        load_exactly(self.optimizer, _map_state(state, self._shapes(), self._shard_one))

    def _shapes(self) -> list[torch.Size]:
        return [param.shape for param in self._params]


def _are_all_finite(shards: Sequence[torch.Tensor], accelerator: Accelerator) -> bool:
    """Whether the shards of all processes are finite; collective."""
    num_nonfinite = torch.stack([~torch.isfinite(shard).all() for shard in shards]).sum().to(accelerator.device)
    if accelerator.num_processes > 1:
        num_nonfinite = accelerator.reduce(num_nonfinite, reduction="sum")
    return not num_nonfinite.item()


@contextmanager
def _swapped_weights(
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


def _map_state(
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


def _ensure_process_group(device: torch.device) -> None:
    """Creates a process group for a run of one process that was started without a launcher."""
    if not torch.distributed.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)


def _named_params(modules: Sequence[nn.Module]) -> Iterator[tuple[tuple[nn.Module, str], nn.Parameter]]:
    for root in modules:
        for name, param in root.named_parameters(remove_duplicate=False):
            yield (root, name), param


def _sharded(value: torch.Tensor) -> DTensor:
    assert isinstance(value, DTensor)
    return value


def _units(config: ShardingConfig, modules: Sequence[nn.Module]) -> list[nn.Module]:
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
