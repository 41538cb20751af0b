"""If this fails, the curve that a user judges a run by shows another average."""

import pytest
import torch

from library.training.monitoring.losses import LossHistory

# step, loss -> average over the last three, as other trainers show it for epochs of three steps
ROWS = [(1, 1.0, 1.0), (2, 2.0, 1.5), (3, 3.0, 2.0), (4, 0.5, 5.5 / 3), (5, 0.5, 4 / 3), (6, 4.0, 5 / 3)]


def feed(history, rows):
    for step, loss, _ in rows:
        history.add(step, torch.tensor(loss))
    return history.fetch()


def test_the_average_is_that_of_the_last_epochs_worth_of_steps():
    history = LossHistory(3)
    assert feed(history, ROWS[:2]) + feed(history, ROWS[2:]) == [pytest.approx(row) for row in ROWS]
    assert history.fetch() == []


def test_a_resumed_run_goes_on_with_the_same_average():
    first = LossHistory(3)
    feed(first, ROWS[:4])
    assert feed(LossHistory(3, first.state()), ROWS[4:]) == feed(first, ROWS[4:])
