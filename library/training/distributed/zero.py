"""DeepSpeed ZeRO: sharded optimizer states (stage 1), gradients too (stage 2), weights too (stage 3).

DeepSpeed's engine reduces gradients, clips their norm and steps in one call, so the step is made where the training
loop asks for the gradient norm; with a non-finite norm the engine skips the step.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import nn

from library.training.distributed.plans import ZeroConfig
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

T = TypeVar("T")
_NO_LIMIT = sys.float_info.max
_BUCKET_ELEMENTS = 2**25  # 128 MiB in float32; DeepSpeed's own sizes are for models of many gigabytes
_SIZES = {
    "reduce_bucket_size": _BUCKET_ELEMENTS,
    "allgather_bucket_size": _BUCKET_ELEMENTS,
    "stage3_prefetch_bucket_size": _BUCKET_ELEMENTS // 4,
    "stage3_max_live_parameters": _BUCKET_ELEMENTS,
    "stage3_max_reuse_distance": _BUCKET_ELEMENTS,
}


class DeepSpeedZero:
    """The `ParallelStrategy` of ZeRO; the optimizer updates flat shards of many parameters."""

    def __init__(
        self,
        config: ZeroConfig,
        accelerator: Accelerator,
        modules: Sequence[nn.Module],
        groups: Sequence[ParamGroup],
        make_optimizer: MakeOptimizer,
        *,
        accumulation: int,
        max_norm: float,
    ):
        """modules: contain the groups' parameters. max_norm: for gradient clipping; infinite for none."""
        ensure_process_group(accelerator.device)
        self._accelerator = accelerator
        self._modules = list(modules)
        self._params = all_params(groups)
        self._max_norm = max_norm
        self.groups = groups
        self.shares_weights = config.shares_weights
        self.optimizer = make_optimizer(groups)
        self._own_settings = _fuse(self.optimizer)
        settings = _deepspeed_config(config, accumulation, max_norm, accelerator.device)
        self._engine = _initialize(Root(modules), self.optimizer, settings, accelerator.device)
        self._zero = self._engine.optimizer
        shards = _WeightShards if config.stage == 3 else _StateShards
        self._shards = shards(self._zero, self._params)

    def run(self, compute: Callable[[], T]) -> T:
        return self._engine(compute)

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(is_last)
        # DeepSpeed averages the gradients; a non-finite loss must not give finite gradients
        poison = torch.where(torch.isfinite(loss.detach()), 1.0, math.nan)
        self._engine.backward(loss * (self._accelerator.num_processes * poison), scale_wrt_gas=False)

    def reduce_and_clip(self, max_norm: float) -> torch.Tensor:
        assert max_norm == self._max_norm, "the engine was made for it"
        self._engine.step()
        norm = self._engine.get_global_grad_norm() if self._engine.was_step_applied() else math.inf
        return torch.as_tensor(norm, dtype=torch.float32, device=self._accelerator.device)

    def step(self) -> None:
        pass

    def skip_step(self) -> None:
        pass

    def zero_grad(self) -> None:
        pass

    def are_weights_finite(self) -> bool:
        return are_all_finite(self._shards.flat, self._accelerator)

    def gathered_weights(self) -> AbstractContextManager[None]:
        if not self.shares_weights:
            return contextlib.nullcontext()
        is_reader = self._accelerator.is_main_process
        return swapped_weights(self._modules, _whole_weight, is_reader=is_reader)

    def gather(self, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return list(values)

    def shard(self, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return list(values)

    def optimizer_state(self) -> dict[str, Any]:
        indices = {id(param): index for index, param in enumerate(self._params)}
        state: dict[int, dict[str, Any]] = {}
        for flat, params in self._shards.flat_params():
            entries = self.optimizer.state.get(flat, {})
            for param in params:
                state[indices[id(param)]] = {
                    key: self._gathered(param, flat, key, value) for key, value in entries.items()
                }
        start, groups = 0, []
        for own, group in zip(self.optimizer.param_groups, self.groups, strict=True):
            numbers = list(range(start, start + len(group.params)))
            groups.append({**own, **self._own_settings, "params": numbers})
            start += len(numbers)
        return {"state": dict(sorted(state.items())), "param_groups": groups}

    def _gathered(self, param: nn.Parameter, flat: torch.Tensor, key: str, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if value.shape != flat.shape:  # a step counter, which each parameter has for itself
            return value.clone()
        whole = self._shards.whole_state(param, key, value)
        return whole.cpu() if self._accelerator.is_main_process else None

    def load_optimizer_state(self, state: Mapping[str, Any]) -> None:
        shapes = self._shards.shapes
        map_state(state, shapes, lambda index, value: value)  # checks that it belongs to these parameters
        indices = {id(param): index for index, param in enumerate(self._params)}
        on_device = any(group.get("fused") or group.get("capturable") for group in self.optimizer.param_groups)
        for flat, params in self._shards.flat_params():
            saved = {id(param): state["state"].get(indices[id(param)], {}) for param in params}
            example = next(iter(saved.values()))
            shape = shapes[indices[id(params[0])]]
            entries: dict[str, Any] = {}
            for key, value in example.items():
                if isinstance(value, torch.Tensor) and value.shape == shape and value.dim() > 0:
                    entries[key] = torch.zeros_like(flat)
                elif isinstance(value, torch.Tensor):
                    entries[key] = value.to(flat.device if on_device else "cpu", copy=True)
                else:
                    entries[key] = value
            self.optimizer.state[flat] = entries
            for param in params:
                for key, value in entries.items():
                    if isinstance(value, torch.Tensor) and value.shape == flat.shape:
                        self._shards.put_state(param, key, value, saved[id(param)][key].to(flat.device))
        for own, group in zip(self.optimizer.param_groups, state["param_groups"], strict=True):
            own.update({key: value for key, value in group.items() if key not in ("params", *self._own_settings)})


def _fuse(optimizer: torch.optim.Optimizer) -> dict[str, None]:
    """Makes PyTorch's optimizers fused, so that they need no copies of the flat shards; returns the former settings."""
    if any(group.get("fused", True) is not None or group.get("foreach") for group in optimizer.param_groups):
        return {}
    for group in optimizer.param_groups:
        group["fused"] = True
    return {"fused": None}


def _mapping_of(param: Any) -> Any:
    """Where DeepSpeed keeps the optimizer states of a parameter; None if no part is in this process's shard."""
    return param._hp_mapping


def _whole_shape(param: Any) -> torch.Size:
    """The shape of a parameter of which DeepSpeed leaves an empty tensor between its uses."""
    return param.ds_shape


class _StateShards:
    """Optimizer states in stages 1 and 2: one flat shard for each group, of its concatenated parameters."""

    def __init__(self, zero: Any, params: Sequence[nn.Parameter]):
        self._zero = zero
        self.shapes = [param.shape for param in params]

    @property
    def flat(self) -> list[torch.Tensor]:
        return list(self._zero.single_partition_of_fp32_groups)

    def flat_params(self) -> Iterator[tuple[torch.Tensor, list[nn.Parameter]]]:
        yield from zip(self.flat, self._zero.bit16_groups, strict=True)

    def whole_state(self, param: nn.Parameter, key: str, flat: torch.Tensor) -> torch.Tensor:
        whole = torch.zeros(param.numel(), dtype=flat.dtype, device=param.device)
        mapping = _mapping_of(param)
        if mapping is not None:
            here, there = mapping.lp_fragment_address, mapping.get_hp_fragment_address()
            whole.narrow(0, here.start, here.numel).copy_(flat.narrow(0, there.start, there.numel))
        torch.distributed.all_reduce(whole)
        return whole.view(param.shape)

    def put_state(self, param: nn.Parameter, key: str, flat: torch.Tensor, whole: torch.Tensor) -> None:
        mapping = _mapping_of(param)
        if mapping is not None:
            here, there = mapping.lp_fragment_address, mapping.get_hp_fragment_address()
            flat.narrow(0, there.start, there.numel).copy_(whole.flatten().narrow(0, here.start, here.numel))


class _WeightShards:
    """Optimizer states in stage 3: flat shards of several parameters each, in which every process has an equal part."""

    def __init__(self, zero: Any, params: Sequence[nn.Parameter]):
        self._zero = zero
        self.shapes = [_whole_shape(param) for param in params]

    @property
    def flat(self) -> list[torch.Tensor]:
        return list(self._zero.fp32_partitioned_groups_flat)

    def flat_params(self) -> Iterator[tuple[torch.Tensor, list[nn.Parameter]]]:
        yield from zip(self.flat, self._zero.fp16_groups, strict=True)

    def whole_state(self, param: nn.Parameter, key: str, flat: torch.Tensor) -> torch.Tensor:
        return self._zero.get_full_hp_param(param, key)

    def put_state(self, param: nn.Parameter, key: str, flat: torch.Tensor, whole: torch.Tensor) -> None:
        _, start, count = self._zero.grad_position[self._zero.get_param_id(param)]
        share = whole.flatten()[count * torch.distributed.get_rank() :][:count]  # the last is shorter, or empty
        flat.narrow(0, start, len(share)).copy_(share)


def _whole_weight(param: nn.Parameter) -> torch.Tensor:
    import deepspeed

    with deepspeed.zero.GatheredParameters([param]):
        return param.detach().clone()


def _deepspeed_config(config: ZeroConfig, accumulation: int, max_norm: float, device: torch.device) -> dict[str, Any]:
    pins = device.type != "cpu"
    is_offloaded = {"offload_optimizer": config.offloads_optimizer, "offload_param": config.offloads_params}
    offloads = {name: {"device": "cpu", "pin_memory": pins} for name, is_on in is_offloaded.items() if is_on}
    return {
        "train_micro_batch_size_per_gpu": 1,  # for DeepSpeed's counters, which are not used
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": min(max_norm, _NO_LIMIT),
        "zero_optimization": {**_SIZES, **config.more, "stage": config.stage, **offloads},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": sys.maxsize,
    }


def _initialize(root: Root, optimizer: torch.optim.Optimizer, config: dict[str, Any], device: torch.device) -> Any:
    """The DeepSpeed engine; DeepSpeed's own log output is hidden."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    os.environ.setdefault("LOCAL_RANK", "0")  # where no launcher has set it
    warnings.filterwarnings("ignore", r"`torch\.distributed\..*` is deprecated", FutureWarning)
    with contextlib.redirect_stdout(io.StringIO()):
        import deepspeed

        deepspeed.utils.logger.setLevel(logging.ERROR)
        # it would compile this for communication between CPUs, where gloo works as well
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        engine, *_ = deepspeed.initialize(model=root, optimizer=optimizer, config=config, dist_init_required=False)
    return engine
