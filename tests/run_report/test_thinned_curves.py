"""If these fail, the page of a long run is large, or does not show its peaks, or its smoothed curve is wrong."""

import random

import pytest

from library.run_report.curves import Curve, Smoother, thinned


@pytest.fixture(scope="module")
def noisy():
    """100,000 steps with one peak and one dip."""
    numbers = random.Random(3)
    points = [(step, numbers.uniform(0.1, 0.2)) for step in range(1, 100_001)]
    points[31_234 - 1], points[77_777 - 1] = (31_234, 5.0), (77_777, 0.001)
    return points


def test_a_thinned_curve_keeps_its_ends_and_extremes_in_order(noisy):
    kept = thinned(noisy, 1000)
    assert 900 < len(kept) <= 1000 and set(kept) <= set(noisy)
    assert kept[0] == noisy[0] and kept[-1] == noisy[-1]
    assert (31_234, 5.0) in kept and (77_777, 0.001) in kept
    assert kept == sorted(kept)
    assert thinned(noisy[:1000], 1000) == noisy[:1000]


def test_a_curve_that_is_thinned_again_and_again_is_as_dense_at_its_beginning_as_at_its_end(noisy):
    curve = Curve()
    for step, value in noisy:
        curve.add(step, value)
    kept = thinned(curve.points, 1000)
    in_quarters = [sum(start < step <= start + 25_000 for step, _ in kept) for start in range(0, 100_000, 25_000)]
    assert min(in_quarters) > 0.9 * max(in_quarters)
    assert (31_234, 5.0) in kept and kept[0] == noisy[0] and kept[-1] == noisy[-1]


def test_the_smoothed_value_is_the_mean_weighted_with_powers_of_the_decay():
    values = [3.0, 1.0, 4.0, 1.0, 5.0]
    smoother = Smoother(window=4)  # decay 3/4
    given = [smoother.add(value) for value in values]
    for number in range(1, 6):
        weights = [0.75 ** (number - 1 - index) for index in range(number)]
        mean = sum(w * v for w, v in zip(weights, values[:number], strict=True)) / sum(weights)
        assert given[number - 1] == pytest.approx(mean)


def test_smoothing_goes_on_after_a_resume_as_if_there_had_been_none():
    whole, values = Smoother(10), [random.Random(1).random() for _ in range(50)]
    given = [whole.add(value) for value in values]
    resumed = Smoother(10, given[19], 20)
    assert [resumed.add(value) for value in values[20:]] == pytest.approx(given[20:])
