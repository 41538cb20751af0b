"""If this fails, a run's page says that time went elsewhere than it did."""

import pytest

from library.training.monitoring.phases import PhaseTimes


def test_of_nested_phases_the_inner_one_counts():
    now, peak = [0.0], [1.0]
    times = PhaseTimes(lambda: peak[0], lambda: now[0])
    with times.phase("steps"):
        now[0] += 10
        with times.phase("saves"):
            now[0], peak[0] = now[0] + 3, 4.0
        now[0] += 5
    now[0] += 100  # of no phase
    with pytest.raises(KeyError), times.phase("saves"):
        now[0] += 2
        raise KeyError
    assert {name: total.seconds for name, total in times.totals.items()} == {"steps": 15, "saves": 5}
    assert times.totals["saves"].peak_gib == 4


def test_what_has_passed_of_an_open_phase_can_be_told():
    now = [0.0]
    times = PhaseTimes(lambda: 0.0, lambda: now[0])
    with times.phase("steps"):
        now[0] += 2
        times.take()
        assert times.totals["steps"].seconds == 2
        now[0] += 1
    assert times.totals["steps"].seconds == 3
