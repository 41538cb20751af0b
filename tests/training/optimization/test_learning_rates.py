"""If these fail, the curves of the learning rate in a log are not what the steps used."""

import math

import pytest
import torch
from transformers.optimization import Adafactor

from library.training.optimization.learning_rates import RateHistory
from library.training.optimization.lr_schedules import make_lr_schedule
from tests.training.optimization.test_lr_schedules import options_of


def params(count: int = 1) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.full((4,), 2.0)) for _ in range(count)]


def logged_rates(optimizer, schedule, names, num_steps=4) -> list[dict[str, float]]:
    history = RateHistory(names, optimizer)
    for step in range(1, num_steps + 1):
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = torch.ones_like(param)
        history.before_step()
        optimizer.step()
        schedule.step()
        history.after_step(step)
    return [history.fetch(step) for step in range(1, num_steps + 1)]


def test_each_step_has_the_rate_it_used():
    """The weights of plain gradient descent tell the rate: w -= rate * 1."""
    [param] = params()
    optimizer = torch.optim.SGD([param], lr=0.8)
    schedule = make_lr_schedule(optimizer, options_of("--lr_scheduler", "linear", "--lr_warmup_steps", "2"), 6)
    rows = logged_rates(optimizer, schedule, ["unet"], 6)
    assert [row["lr/unet"] for row in rows] == pytest.approx([0, 0.4, 0.8, 0.6, 0.4, 0.2])
    assert param[0].item() == pytest.approx(2 - sum(row["lr/unet"] for row in rows))


def test_groups_of_one_name_are_told_apart():
    groups = [{"params": params(), "lr": rate} for rate in (0.1, 0.2, 0.3)]
    optimizer = torch.optim.SGD(groups)
    schedule = make_lr_schedule(optimizer, options_of(), 4)
    row = logged_rates(optimizer, schedule, ["textencoder", "unet", "unet"])[0]
    assert row == pytest.approx({"lr/textencoder": 0.1, "lr/unet-1": 0.2, "lr/unet-2": 0.3})


def test_a_rate_that_is_a_tensor_is_not_overwritten_by_the_next():
    """Some optimizers hold the rate in a tensor, and a schedule writes into it."""
    optimizer = torch.optim.AdamW(params(), lr=torch.tensor(1.0))
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    rows = logged_rates(optimizer, schedule, ["unet"])
    assert [row["lr/unet"] for row in rows] == [1, 0.5, 0.25, 0.125]


def test_the_estimate_of_an_adaptive_optimizer_is_logged():
    """Prodigy's users judge a run by d * lr. The steps' own lengths say what it was."""
    prodigyopt = pytest.importorskip("prodigyopt")
    [param] = params()
    optimizer = prodigyopt.Prodigy([param], lr=1.0, d0=1e-3, weight_decay=0, betas=(0.5, 0.999))
    schedule = make_lr_schedule(optimizer, options_of("--lr_scheduler", "linear"), 5)
    history, expected = RateHistory(["unet"], optimizer), []
    for step in range(1, 6):
        before = param.detach().clone()
        param.grad = torch.ones_like(param)
        history.before_step()
        optimizer.step()
        schedule.step()
        history.after_step(step)
        moments = optimizer.state[param]
        direction = moments["exp_avg"] / moments["exp_avg_sq"].sqrt()
        expected.append(float(((before - param.detach()) / direction)[0]))
    rows = [history.fetch(step) for step in range(1, 6)]
    assert [row["lr/unet"] for row in rows] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])
    assert [row["lr/d*lr/unet"] for row in rows] == pytest.approx(expected, rel=1e-4)
    assert expected[-1] > expected[0]  # the estimate has grown


def test_adafactors_own_rate_is_logged():
    """arXiv:1804.04235, algorithm 5: max(0.001, RMS of the weights) * min(0.01, 1 / sqrt(step)); the weights are 2."""
    [param] = params()
    optimizer = Adafactor([param], relative_step=True, scale_parameter=True, warmup_init=False)
    options = options_of("--lr_scheduler", "adafactor:0.001", "--optimizer_type", "AdaFactor")
    assert options.lr_scheduler == "adafactor"
    rows = []
    history, schedule = RateHistory(["unet"], optimizer), make_lr_schedule(optimizer, options, 3)
    for step in (1, 2, 3):
        expected = 0.01 * math.sqrt(float((param.detach() ** 2).mean()))
        param.grad = torch.ones_like(param)
        history.before_step()
        optimizer.step()
        schedule.step()
        history.after_step(step)
        rows.append((history.fetch(step)["lr/unet"], expected))
    assert [found for found, _ in rows] == pytest.approx([expected for _, expected in rows])
