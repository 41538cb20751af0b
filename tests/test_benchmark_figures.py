"""If these fail, a benchmark says that a target is reached that is not."""

from __future__ import annotations

from benchmarks.figures import Figure, ratio, table


def test_a_target_is_compared_with_the_median_of_ratios_of_the_same_rounds():
    figure = ratio("step", ours=[2.0, 30.0, 4.0], bare=[1.0, 10.0, 4.0], target=1.5)  # 2, 3, 1
    assert (figure.median, figure.reaches_target) == (2.0, False)
    assert table([figure]).splitlines()[1].split() == [
        "step",
        "2.000",
        "1.000",
        "3.000",
        "x",
        "at",
        "most",
        "1.5:",
        "missed",
    ]


def test_a_speed_is_to_be_at_least_its_target():
    assert Figure("speed", (1.0, 1.9, 2.0), target=1.8, is_least=True).reaches_target
    assert not Figure("speed", (1.0, 1.7, 2.0), target=1.8, is_least=True).reaches_target
