"""The learning rates that each step actually used, kept until they are logged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.optim.lr_scheduler import LambdaLR

if TYPE_CHECKING:
    from transformers.optimization import Adafactor

Rate = float | torch.Tensor


class RateHistory:
    """The learning rates of past steps, under their names in the logs.

    `lr/<group>` is the learning rate; where the optimizer estimates a factor `d` (D-Adaptation, Prodigy),
    `lr/d*lr/<group>` is the effective rate.
    """

    def __init__(self, names: Sequence[str], optimizer: torch.optim.Optimizer):
        """names: of the optimizer's parameter groups, in order; a name that several groups have is numbered from 1."""
        self._names = _distinct(names)
        self._optimizer = optimizer
        self._before: dict[str, Rate] = {}
        self._waiting: dict[int, dict[str, Rate]] = {}

    def before_step(self) -> None:
        """Call before the optimizer's step: the schedule sets the rates of the next step after it."""
        self._before = self._now()

    def after_step(self, step: int) -> None:
        """Call after the optimizer and the schedule have made step `step`."""
        # AdaFactor's relative step size is known only after the step
        makes_own = any(group.get("relative_step") for group in self._optimizer.param_groups)
        self._waiting[step] = self._now() if makes_own else self._before

    def _now(self) -> dict[str, Rate]:
        rates: dict[str, Rate] = {}
        for name, group in zip(self._names, self._optimizer.param_groups, strict=True):
            rates[f"lr/{name}"] = _kept(group["lr"])
            if "d" in group:
                rates[f"lr/d*lr/{name}"] = _kept(group["d"] * group["lr"])
        return rates

    def fetch(self, step: int) -> dict[str, float]:
        """The rates of a step, returned once; waits for the device where a rate is a tensor on it."""
        return {name: float(rate) for name, rate in self._waiting.pop(step, {}).items()}


def _kept(rate: Rate) -> Rate:
    # an optimizer may write the next rate into the same tensor
    return rate.detach().clone() if isinstance(rate, torch.Tensor) else rate


def _distinct(names: Sequence[str]) -> list[str]:
    counts, seen = Counter(names), Counter[str]()
    distinct = []
    for name in names:
        seen[name] += 1
        distinct.append(name if counts[name] == 1 else f"{name}-{seen[name]}")
    return distinct


class AdafactorRates(LambdaLR):
    """Reports, as a learning-rate schedule does, the rate that AdaFactor set itself in the last step of each group.

    It is the rate of the group's first parameter. The class in `transformers` looks at gradients to see which groups
    stepped: it miscounts when part of the model is no longer trained, and when gradients are already freed.
    """

    optimizer: Adafactor

    def __init__(self, optimizer: torch.optim.Optimizer, initial_rate: float):
        """`initial_rate`: reported before the first step."""
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
