"""Norms of the gradients of past steps, kept on the device until they are logged."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch
from torch import nn

_NAMES = ("norm/grad_norm", "norm/avg_grad_norm")


class GradientNorms:
    """`norm/grad_norm` is the norm of all gradients before clipping (`--max_grad_norm`).

    `norm/avg_grad_norm` is the mean over the trained tensors of their gradients' norms, as the optimizer gets them.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[int, torch.Tensor]] = []

    def add(self, step: int, total: torch.Tensor, params: Sequence[nn.Parameter]) -> None:
        """`total`: the norm of all. `params`: those with whole gradients; none where they are sharded."""
        grads = [param.grad for param in params if param.grad is not None]
        norms = [total.detach().float()]
        if grads:
            each = [norm.float().to(total.device) for norm in torch._foreach_norm(grads)]
            norms.append(torch.stack(each).mean())
        self._waiting.append((step, torch.stack(norms)))

    def fetch(self) -> dict[int, dict[str, float]]:
        """The norms of every step since the last call; waits for the device once."""
        if not self._waiting:
            return {}
        values = iter(torch.cat([norms for _, norms in self._waiting]).tolist())
        rows = {step: dict(zip(_NAMES, islice(values, len(norms)), strict=False)) for step, norms in self._waiting}
        self._waiting.clear()
        return rows
