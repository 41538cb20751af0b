"""Learning rates of a run: what each step really used, kept until it is wanted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

Rate = float | torch.Tensor


class RateHistory:
    """The rates of the steps done, under the names they have in logs.

    `lr/<group>` is the rate; where the optimizer estimates a factor `d` (D-Adaptation, Prodigy), `lr/d*lr-<group>` is
    the rate that it really used.
    """

    def __init__(self, names: Sequence[str], optimizer: torch.optim.Optimizer):
        """names: of the optimizer's groups, in their order; one that several groups have is numbered from 1."""
        self._names = _distinct(names)
        self._optimizer = optimizer
        self._before: dict[str, Rate] = {}
        self._waiting: dict[int, dict[str, Rate]] = {}

    def before_step(self) -> None:
        """Call before the optimizer's step: the schedule then sets the rates of the next one."""
        self._before = self._now()

    def after_step(self, step: int) -> None:
        """Call when optimizer and schedule have made step `step`."""
        # AdaFactor's relative step is known only when the step is made
        makes_own = any(group.get("relative_step") for group in self._optimizer.param_groups)
        self._waiting[step] = self._now() if makes_own else self._before

    def _now(self) -> dict[str, Rate]:
        rates: dict[str, Rate] = {}
        for name, group in zip(self._names, self._optimizer.param_groups, strict=True):
            rates[f"lr/{name}"] = _kept(group["lr"])
            if "d" in group:
                rates[f"lr/d*lr-{name}"] = _kept(group["d"] * group["lr"])
        return rates

    def fetch(self, step: int) -> dict[str, float]:
        """The rates of a step, once; waits for the device where a rate is a tensor there."""
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
