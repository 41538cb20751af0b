"""Devices, processes and data types: what `accelerate` is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from library.cli.errors import UserError
from library.models.options import MemoryOptions

SHARDING_VARIABLES = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP")
_MESSAGE_ELEMENTS = 2**25  # 128 MiB in float32
DTYPES = {"float": torch.float32, "no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def make_accelerator(mixed_precision: str, *, full: bool = False, timeout_minutes: int | None = None) -> Accelerator:
    """The accelerator of this process. Raises `UserError` when the device has no such precision.

    `full`: what learns is in that precision too. `timeout_minutes`: how long processes wait for each other. What the
    environment asks accelerate to share out is taken away from it (`sharding.plans` has read it).
    """
    if mixed_precision == "fp16" and not torch.cuda.is_available():
        raise UserError("--mixed_precision fp16 needs a GPU, and none was found", hint="use bf16 or no")
    if mixed_precision == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise UserError("--mixed_precision bf16 is more than this GPU can do", hint="use fp16 or no")
    for variable in SHARDING_VARIABLES:  # accelerate would share out what it prepares: learners do that
        os.environ.pop(variable, None)
    waiting = [] if timeout_minutes is None else [InitProcessGroupKwargs(timeout=timedelta(minutes=timeout_minutes))]
    accelerator = Accelerator(mixed_precision=mixed_precision, kwargs_handlers=waiting)
    if full and mixed_precision == "fp16":
        accelerator.scaler = HalfGradScaler(accelerator.device.type)
    return accelerator


def check_memory_options(options: MemoryOptions, accelerator: Accelerator) -> None:
    """Raises `UserError` for what the device, or the version of PyTorch, cannot do; before a model is loaded."""
    if options.keeps_fp8_unet and accelerator.device.type == "mps":
        flag = "--fp8_base" if options.fp8_base else "--fp8_base_unet"
        raise UserError(f"{flag}: this device has no numbers of 8 bits", hint="leave it out")
    known = torch._dynamo.list_backends(exclude_tags=()) if options.compiles else []
    if options.compiles and options.dynamo_backend not in known:
        raise UserError(
            f"--dynamo_backend {options.dynamo_backend} is not there: this PyTorch has {', '.join(known)}",
            hint="choose one of these",
        )


class HalfGradScaler(torch.amp.GradScaler):
    """A scaler of the loss that takes gradients in fp16, which PyTorch's own refuses."""

    def _unscale_grads_(self, optimizer, inv_scale, found_inf, allow_fp16):
        return super()._unscale_grads_(optimizer, inv_scale, found_inf, True)


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
