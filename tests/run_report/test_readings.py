"""If these fail, the page of a run says that a loss rose which only jumps, as it does from step to step."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from library.run_report.readings import readings
from tests.run_report.pages import make_record


def said(losses: list[float]) -> list[tuple[str, bool]]:
    record = replace(make_record("fox"), curves={"loss": list(enumerate(losses, 1))})
    return [(each.text, each.is_bad) for each in readings(record) if "loss" in each.text and "finite" not in each.text]


def test_a_loss_that_only_jumps_is_the_same():
    """Its last value is three times the first."""
    draw = random.Random(1)
    losses = [0.05, *(draw.uniform(0.01, 0.3) for _ in range(298)), 0.15]
    ((text, is_bad),) = said(losses)
    assert "the same within the scatter" in text and not is_bad


@pytest.mark.parametrize(
    ("late", "words", "is_bad"),
    [(0.05, "fell by 50%", False), (0.12, "rose by 20%", False), (0.2, "rose by 100%", True)],
)
def test_means_of_the_thirds_are_compared(late, words, is_bad):
    losses = [0.1, *[0.1 + 0.001 * (-1) ** step for step in range(98)], 0.1]
    losses += [0.3] * 100  # the second third does not count
    losses += [late + 0.001 * (-1) ** step for step in range(100)]
    ((text, found),) = said(losses)
    assert words in text and found is is_bad


def test_few_steps_say_nothing():
    assert said([0.1, 0.5] * 29) == []
