"""Devices, processes and data types: what `accelerate` is asked for."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from library.cli.errors import UserError

DTYPES = {"float": torch.float32, "no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def make_accelerator(mixed_precision: str) -> Accelerator:
    """The accelerator of this process. Raises `UserError` when the device has no such precision."""
    if mixed_precision == "fp16" and not torch.cuda.is_available():
        raise UserError("--mixed_precision fp16 needs a GPU, and none was found", hint="use bf16 or no")
    if mixed_precision == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise UserError("--mixed_precision bf16 is more than this GPU can do", hint="use fp16 or no")
    return Accelerator(mixed_precision=mixed_precision)


def reduce_gradients(accelerator: Accelerator, params: list[torch.nn.Parameter]) -> None:
    """Sums gradients over the processes, in one message; a process without a micro-batch adds zeros."""
    if accelerator.num_processes == 1:
        return
    for param in params:
        if param.grad is None:
            param.grad = torch.zeros_like(param)
    total = accelerator.reduce(torch.cat([param.grad.flatten() for param in params]), reduction="sum")
    start = 0
    for param in params:
        param.grad.copy_(total[start : start + param.numel()].view_as(param))
        start += param.numel()
