"""If these fail, what --ema saves is not the average that is promised."""

import numpy as np
import pytest
import torch

from library.cli.errors import UserError
from library.training.optimization.ema import WeightEMA
from library.training.optimization.options import AverageOptions


def walk(num_steps: int) -> np.ndarray:
    """Weights of a parameter (steps + 1, 3): before training and after each step."""
    return np.random.default_rng(3).standard_normal((num_steps + 1, 3)).cumsum(axis=0)


def expected(weights: np.ndarray, decay: float, first: int) -> np.ndarray:
    """By the weights that each step has in the average: a product of decays, written out."""
    steps = range(first, len(weights))
    decays = [min(decay, (1 + n) / (10 + n)) for n in range(1, len(steps))]
    shares = [np.prod(decays), *((1 - d) * np.prod(decays[n + 1 :]) for n, d in enumerate(decays))]
    assert sum(shares) == pytest.approx(1)
    return sum(share * weights[step] for share, step in zip(shares, steps, strict=True))


def averaged(weights: np.ndarray, options: AverageOptions, dtype=torch.float32) -> tuple[torch.nn.Parameter, WeightEMA]:
    param = torch.nn.Parameter(torch.tensor(weights[0], dtype=dtype))
    average = WeightEMA([param], options)
    for step in range(1, len(weights)):
        param.data.copy_(torch.tensor(weights[step]))
        average.update(step)
    return param, average


@pytest.mark.parametrize(("decay", "start", "first"), [(0.9, 0, 1), (0.5, 0, 1), (0.9999, 0, 1), (0.9, 30, 30)])
def test_the_average_is_the_weighted_mean_of_the_steps(decay, start, first):
    weights = walk(150)
    param, average = averaged(weights, AverageOptions(ema=True, ema_decay=decay, ema_start_step=start))
    own = param.detach().clone()
    with average.swapped_in():
        np.testing.assert_allclose(param.detach().numpy(), expected(weights, decay, first), rtol=2e-5)
    assert torch.equal(param, own)


def test_before_it_begins_the_weights_themselves_are_shown():
    weights = walk(5)
    param, average = averaged(weights, AverageOptions(ema=True, ema_start_step=6))
    with average.swapped_in():
        np.testing.assert_array_equal(param.detach().numpy(), weights[5].astype(np.float32))


def test_weights_of_16_bits_are_averaged_in_32():
    """A thousandth of a step would be rounded away."""
    weights = np.ones((4000, 3))
    weights[2000:] = 1.5
    param, average = averaged(weights, AverageOptions(ema=True, ema_decay=0.9999), torch.bfloat16)
    (kept,) = average.state()["averages"]
    assert kept.dtype == torch.float32
    np.testing.assert_allclose(kept.numpy(), expected(weights, 0.9999, 1), rtol=1e-4)
    with average.swapped_in():
        assert param.dtype == torch.bfloat16
    assert torch.equal(param, torch.full((3,), 1.5, dtype=torch.bfloat16))


def test_the_weights_come_back_when_a_save_fails():
    param, average = averaged(walk(9), AverageOptions(ema=True, ema_decay=0.9))
    own = param.detach().clone()
    with pytest.raises(OSError, match="full"), average.swapped_in():
        raise OSError("disk full")
    assert torch.equal(param, own)


def test_a_state_of_other_weights_is_refused():
    _, average = averaged(walk(3), AverageOptions(ema=True))
    other = WeightEMA([torch.nn.Parameter(torch.zeros(4))], AverageOptions(ema=True))
    with pytest.raises(UserError, match="has other shapes than the trained weights"):
        other.load(average.state())
