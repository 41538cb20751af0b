"""Out of memory: the error, with the flags that would save memory in this run and that it does not use yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from library.cli.errors import OutOfMemory
from library.cli.parser import Options
from library.data.config.options import CachingOptions, DatasetOptions
from library.models.options import MemoryOptions
from library.training.distributed.sharding_config import ShardingConfig
from library.training.optimization.options import OptimizerOptions
from library.training.options import TrainingOptions

# in PyTorch's errors when there is no memory; only for its own allocator on the GPU there is an exception class
_GPU_MESSAGES = (
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
    "MPS backend out of memory",
)
_CPU_MESSAGES = ("DefaultCPUAllocator", "not enough memory", "can't allocate memory", "could not create a primitive")


@contextmanager
def memory_errors(options: Options, sharding: ShardingConfig | None = None) -> Iterator[None]:
    """Turns an out-of-memory error into an `OutOfMemory` with remedies. `sharding`: where in use."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        is_on_gpu = isinstance(error, torch.OutOfMemoryError) or _holds(error, _GPU_MESSAGES)
        if not is_on_gpu and not isinstance(error, MemoryError) and not _holds(error, _CPU_MESSAGES):
            raise
        where = "the GPU has" if is_on_gpu else "there is"
        helps = [*_remedies(options, sharding is not None), *_sharding_remedies(sharding)]
        raise OutOfMemory(
            f"{where} not enough memory for this run",
            hint=f"options that save memory, the cheapest first: {', '.join(helps)}",
        ) from None


def _holds(error: BaseException, messages: Sequence[str]) -> bool:
    return any(message in str(error) for message in messages)


def _remedies(options: Options, is_sharded: bool) -> Iterator[str]:
    training, memory = options[TrainingOptions], options[MemoryOptions]
    caching, described = options.get(CachingOptions), options.get(DatasetOptions)
    if caching is not None and not caching.caches_latents:
        yield "--cache_latents"
    if training.mixed_precision == "no":
        yield "--mixed_precision bf16"
    if not is_sharded and "8bit" not in options[OptimizerOptions].optimizer.lower():
        yield "--optimizer_type AdamW8bit"
    if not training.gradient_checkpointing:
        yield "--gradient_checkpointing"
    if described is not None and (described.train_batch_size > 1 or described.dataset_config is not None):
        yield "a smaller batch size with --gradient_accumulation_steps"
    if not memory.mem_eff_attn and not memory.xformers:
        yield "--mem_eff_attn"
    yield "a smaller resolution"


def _sharding_remedies(config: ShardingConfig | None) -> Iterator[str]:
    """What more could be sharded or offloaded."""
    if config is None:
        return
    is_zero = config.zero_stage is not None
    if not config.reshard_after_forward:
        yield "--zero_stage 3" if is_zero else "fsdp_reshard_after_forward in accelerate's configuration"
    if config.units == "whole":
        yield "fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP in accelerate's configuration"
    if not config.offloads:
        yield "--offload_optimizer_device cpu" if is_zero else "fsdp_offload_params in accelerate's configuration"
