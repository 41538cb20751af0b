"""Learning-rate schedules: a factor of the learning rate for each optimizer step. A new one is a row of `SCHEDULES`.

Imports no torch: the options take their choices from the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from library.cli.errors import UserError
from library.training.optimization.key_value_args import read_pairs, unknown_arguments


@dataclass(frozen=True)
class LRCurve:
    """The parameters of a learning-rate schedule. Steps are optimizer steps, counted from 0."""

    num_steps: int
    warmup: int = 0
    decay: int = 0
    num_cycles: float = 1
    power: float = 1.0
    timescale: int | None = None
    min_ratio: float = 0.0
    end_ratio: float = 0.0  # final learning rate of `polynomial` as a fraction of the initial one
    step_rules: StepRules | None = None

    def progress(self, step: int) -> float:
        """The fraction of the steps after the warm-up that is done: 0 to 1, above 1 when the run is longer."""
        return (step - self.warmup) / max(1, self.num_steps - self.warmup)


def _constant(step: int, curve: LRCurve) -> float:
    return 1.0


def _linear(step: int, curve: LRCurve) -> float:
    return max(0.0, 1 - curve.progress(step))


def _cosine(step: int, curve: LRCurve) -> float:
    """`num_cycles` half periods: one falls from 1 to 0. SGDR, arXiv:1608.03983, equation 5, without a restart."""
    return max(0.0, 0.5 * (1 + math.cos(math.pi * curve.num_cycles * curve.progress(step))))


def _cosine_with_restarts(step: int, curve: LRCurve) -> float:
    """`num_cycles` cycles from 1 to 0, each restarting at 1. SGDR, arXiv:1608.03983, equation 5."""
    progress = curve.progress(step)
    return 0.0 if progress >= 1 else 0.5 * (1 + math.cos(math.pi * (curve.num_cycles * progress % 1)))


def _polynomial(step: int, curve: LRCurve) -> float:
    left = max(0.0, 1 - curve.progress(step))
    return (1 - curve.end_ratio) * left**curve.power + curve.end_ratio


def _inverse_sqrt(step: int, curve: LRCurve) -> float:
    """1 / sqrt(1 + steps after the warm-up / timescale); the timescale is the warm-up, or 10,000 without one."""
    timescale = curve.timescale or curve.warmup or 10_000
    return 1 / math.sqrt(1 + (step - curve.warmup) / timescale)


def _cosine_with_min_lr(step: int, curve: LRCurve) -> float:
    return curve.min_ratio + (1 - curve.min_ratio) * _cosine(step, curve)


def _warmup_stable_decay(step: int, curve: LRCurve) -> float:
    """1 up to the last `decay` steps, then cosine half periods down to `min_ratio`. arXiv:2404.06395, section 4."""
    start = curve.num_steps - curve.decay
    if step < start:
        return 1.0
    if step >= curve.num_steps:
        return curve.min_ratio
    wave = 0.5 * (1 + math.cos(math.pi * curve.num_cycles * (step - start) / curve.decay))
    return curve.min_ratio + (1 - curve.min_ratio) * wave


def _piecewise_constant(step: int, curve: LRCurve) -> float:
    assert curve.step_rules is not None, "the options were checked"
    return next((factor for bound, factor in curve.step_rules.bounds if step < bound), curve.step_rules.last)


@dataclass(frozen=True)
class Schedule:
    """A named schedule: a row of the table."""

    factor: Callable[[int, LRCurve], float]  # at a step after the warm-up
    has_warmup: bool = True
    warmup_from_min_ratio: bool = False  # the warm-up rises from `min_ratio`, not from 0
    reads: tuple[str, ...] = ()  # the options that it uses, besides the warm-up


SCHEDULES: dict[str, Schedule] = {
    "constant": Schedule(_constant, has_warmup=False),
    "constant_with_warmup": Schedule(_constant),
    "linear": Schedule(_linear),
    "cosine": Schedule(_cosine),
    "cosine_with_restarts": Schedule(_cosine_with_restarts, reads=("lr_scheduler_num_cycles",)),
    "polynomial": Schedule(_polynomial, reads=("lr_scheduler_power",)),
    "inverse_sqrt": Schedule(_inverse_sqrt, reads=("lr_scheduler_timescale",)),
    "cosine_with_min_lr": Schedule(_cosine_with_min_lr, reads=("lr_scheduler_num_cycles", "lr_scheduler_min_lr_ratio")),
    "warmup_stable_decay": Schedule(
        _warmup_stable_decay,
        warmup_from_min_ratio=True,
        reads=("lr_decay_steps", "lr_scheduler_num_cycles", "lr_scheduler_min_lr_ratio"),
    ),
    "piecewise_constant": Schedule(_piecewise_constant, has_warmup=False),
    "adafactor": Schedule(_constant, has_warmup=False),  # AdaFactor's relative_step sets the learning rate
}


FLAG = "--lr_scheduler_args"
RULES_HINT = f'for instance {FLAG} "step_rules=1:100,0.1:200,0.01" (factor:up to which step, and the last factor)'


@dataclass(frozen=True)
class StepRules:
    """Piecewise constant factors: each holds up to a step, `last` from the last of these on."""

    bounds: tuple[tuple[int, float], ...]  # (end step, exclusive; factor), in order
    last: float


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise ValueError("a number above 0")
    return float(value)


def _not_negative(value: Any) -> float:
    return 0.0 if value == 0 and not isinstance(value, bool) else _positive(value)


def _step_rules(value: str) -> StepRules:
    """`1:10,0.1:20,0.005`: 1 before step 10, 0.1 before step 20, then 0.005."""
    *rules, last = value.split(",")
    try:
        bounds = []
        for rule in rules:
            factor, _, step = rule.partition(":")
            bounds.append((int(step), float(factor)))
        last_factor = float(last)
    except ValueError:
        raise ValueError("factor:step,factor:step,...,factor") from None
    steps = [step for step, _ in bounds]
    if steps != sorted(set(steps)) or any(step < 1 for step in steps):
        raise ValueError("factor:step,factor:step,...,factor with rising steps, 1 or more")
    factors = [*(factor for _, factor in bounds), last_factor]
    if any(not 0 <= factor < float("inf") for factor in factors):
        raise ValueError("factors that are finite and not negative")
    return StepRules(tuple(bounds), last_factor)


# arguments of named schedules, each with its parser; a class takes those of its constructor
ARGUMENTS: dict[str, dict[str, Callable[[Any], Any]]] = {
    "cosine": {"num_cycles": _positive},
    "polynomial": {"lr_end": _not_negative},
    "piecewise_constant": {"step_rules": _step_rules},
}


TEXTS = ("step_rules",)  # values that are not Python literals


def read_schedule_args(schedule: str, arguments: Sequence[str]) -> tuple[dict[str, Any], list[UserError]]:
    """The parsed `--lr_scheduler_args` of a named schedule, and all errors in them."""
    given, problems = read_pairs(FLAG, arguments, TEXTS)
    known = ARGUMENTS.get(schedule, {})
    problems += unknown_arguments(FLAG, given, list(known), schedule)
    values = {}
    for key, value in given.items():
        try:
            if key in known:
                values[key] = known[key](value)
        except ValueError as error:
            problems.append(UserError(f"{FLAG} {key}={value} is not valid", hint=f"give {error}"))
    if schedule == "piecewise_constant" and "step_rules" not in given:
        problems.append(UserError("--lr_scheduler piecewise_constant needs the argument step_rules", hint=RULES_HINT))
    return values, problems
