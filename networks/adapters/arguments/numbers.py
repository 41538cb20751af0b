"""Numbers, and yes or no, in `--network_args`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


def number(value: Any, description: str, accepts: Callable[[float], bool] = lambda number: True) -> float:
    """A finite number that `accepts` takes; else ValueError with the description of such numbers."""
    try:
        parsed = float(value)
    except (TypeError, ValueError):
        raise ValueError(description) from None
    if not math.isfinite(parsed) or not accepts(parsed):
        raise ValueError(description)
    return parsed


def rank(value: Any) -> int:
    return int(number(value, "a whole number from 1", lambda number: number >= 1 and number == int(number)))


def alpha(value: Any) -> float | None:
    """None for 0: the rank."""
    return number(value, "a number above 0, or 0 for the rank", lambda number: number >= 0) or None


def probability(value: Any) -> float:
    return number(value, "a number from 0 to below 1", lambda number: 0 <= number < 1)


def ratio(value: Any) -> float:
    return number(value, "a number above 0", lambda number: number > 0)


def rank_or_none(value: Any) -> int:
    """0: no layer."""
    return int(number(value, "a whole number from 0", lambda number: number >= 0 and number == int(number)))


def kronecker_factor(value: Any) -> int:
    """-1: as near to the other side as there is one."""
    description = "a whole number from 1, or -1"
    return int(number(value, description, lambda number: number == int(number) and (number >= 1 or number == -1)))


def yes_or_no(value: Any) -> bool:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if str(value).lower() not in words:
        raise ValueError("True or False")
    return words[str(value).lower()]
