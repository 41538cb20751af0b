"""The course of a rate that AdaFactor makes itself (relative_step): it can only be read off."""

from __future__ import annotations

import torch
from torch.optim.lr_scheduler import LambdaLR


class AdafactorRates(LambdaLR):
    """Shows, as a schedule does, the rate at which each group's first parameter took its last step.

    That of `transformers` looks for gradients to tell which groups stepped: it loses count when a part of the model
    stops learning, and when gradients are gone by then.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, initial_rate: float):
        """`initial_rate`: shown before the first step."""
        for group in optimizer.param_groups:
            group["initial_lr"] = initial_rate
        super().__init__(optimizer, lambda step: 1.0)

    def get_lr(self) -> list[float | torch.Tensor]:
        optimizer = self.optimizer
        rates = []
        for group, first in zip(optimizer.param_groups, self.base_lrs, strict=True):
            state = next((optimizer.state[param] for param in group["params"] if optimizer.state.get(param)), None)
            rates.append(first if state is None else optimizer._get_lr(group, state))
        return rates
