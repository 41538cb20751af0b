"""Times, norms and averages of steps, against values computed by hand or with NumPy."""

from __future__ import annotations

import numpy as np
import psutil
import pytest
import torch

from library.training.monitoring.gradient_norms import GradientNorms
from library.training.monitoring.performance import StepTimes, peak_memory


def test_what_is_between_steps_does_not_count():
    now = [0.0]
    times = StepTimes(clock=lambda: now[0])

    def pass_time(seconds: float) -> None:
        now[0] += seconds

    for waiting in (1.0, 0.0):
        with times.step():
            with times.fetch():
                pass_time(waiting)
            pass_time(1.5)
            times.count(8)
        pass_time(100)  # a save
    assert times.take() == {
        "perf/seconds_per_step": 2.0,
        "perf/images_per_second": 4.0,
        "perf/data_wait_share": 0.25,
    }
    assert times.take() == {}


def test_the_peak_is_at_least_what_the_process_has_now():
    """In GiB: a wrong unit would be off by 1024."""
    now = psutil.Process().memory_info().rss / 2**30
    assert now <= peak_memory(torch.device("cpu")) * 1.01 < psutil.virtual_memory().total / 2**30


def test_norms_of_gradients_are_numpys():
    params = [torch.nn.Parameter(torch.zeros(size)) for size in ((3, 4), (5,), (2, 2))]
    rng = np.random.default_rng(0)
    grads = [rng.normal(size=param.shape).astype(np.float32) for param in params[:2]]
    for param, grad in zip(params, grads, strict=False):
        param.grad = torch.from_numpy(grad)
    norms = GradientNorms()
    norms.add(7, torch.tensor(3.0), params)  # the last has no gradient
    norms.add(8, torch.tensor(2.0), [])
    expected = np.mean([np.linalg.norm(grad) for grad in grads])
    first, second = norms.fetch().items()
    assert first == (7, {"norm/grad_norm": 3.0, "norm/avg_grad_norm": pytest.approx(expected, rel=1e-6)})
    assert second == (8, {"norm/grad_norm": 2.0})
    assert norms.fetch() == {}
