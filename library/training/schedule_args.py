"""`--lr_scheduler_args`: what they say, and which of them a schedule takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from library.cli.errors import UserError
from library.training.key_value_args import read_pairs, unknown_arguments

FLAG = "--lr_scheduler_args"
RULES_HINT = f'for instance {FLAG} "step_rules=1:100,0.1:200,0.01" (factor:up to which step, and the last factor)'


@dataclass(frozen=True)
class StepRules:
    """Factors that hold up to a step each, and the one that holds from then on."""

    bounds: tuple[tuple[int, float], ...]  # (step before which it holds, factor), by step
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


# which arguments a named schedule takes, each with what reads its value; a class takes those of its constructor
ARGUMENTS: dict[str, dict[str, Callable[[Any], Any]]] = {
    "cosine": {"num_cycles": _positive},
    "polynomial": {"lr_end": _not_negative},
    "piecewise_constant": {"step_rules": _step_rules},
}


TEXTS = ("step_rules",)  # values that are no Python literals


def read_schedule_args(schedule: str, arguments: Sequence[str]) -> tuple[dict[str, Any], list[UserError]]:
    """What `--lr_scheduler_args` give to the named schedule, and everything that is wrong with them."""
    given, problems = read_pairs(FLAG, arguments, TEXTS)
    known = ARGUMENTS.get(schedule, {})
    problems += unknown_arguments(FLAG, given, list(known), schedule)
    values = {}
    for key, value in given.items():
        try:
            if key in known:
                values[key] = known[key](value)
        except ValueError as error:
            problems.append(UserError(f"{FLAG} {key}={value} is not right", hint=f"give {error}"))
    if schedule == "piecewise_constant" and "step_rules" not in given:
        problems.append(UserError("--lr_scheduler piecewise_constant needs the argument step_rules", hint=RULES_HINT))
    return values, problems
