"""If these fail, --fused_backward_pass learns something else than its documents say, or keeps what it should
free."""

import math

import pytest
import torch

from library.cli.checks import report
from library.cli.errors import UserError
from library.training.optimization.fused_backward import (
    fused_backward_findings,
    fused_processes_findings,
    step_in_backward,
)
from library.training.optimization.options import OptimizerOptions
from library.training.options import TrainingOptions


def _fit():
    draws = torch.Generator().manual_seed(5)
    first, second = (torch.nn.Parameter(torch.randn(4, 4, generator=draws)) for _ in range(2))
    optimizer = torch.optim.AdamW([{"params": [first], "lr": 0.1}, {"params": [second], "lr": 0.01}])
    return first, second, optimizer, torch.randn(8, 4, generator=draws)


def test_the_limit_is_on_each_gradient_by_itself_and_none_is_left():
    first, second, _, inputs = _fit()
    sgd = torch.optim.SGD([{"params": [first], "lr": 0.5}, {"params": [second], "lr": 2.0}])
    before = first.detach().clone(), second.detach().clone()
    loss = (torch.tanh(inputs @ first) @ second).square().sum()
    gradients = torch.autograd.grad(loss, [first, second], retain_graph=True)
    step_in_backward(sgd, max_grad_norm=0.25)
    loss.backward()
    for param, start, gradient, rate in zip((first, second), before, gradients, (0.5, 2.0), strict=True):
        assert gradient.norm() > 0.25  # there is something to limit
        torch.testing.assert_close(param.detach(), start - rate * 0.25 * gradient / gradient.norm())
        assert param.grad is None


def test_it_goes_on_with_the_groups_of_a_loaded_state():
    first, second, optimizer, inputs = _fit()
    step_in_backward(optimizer, 0)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0]["lr"] = 0.0  # as a schedule would, after a resume
    before = first.detach().clone(), second.detach().clone()
    (inputs @ first @ second).square().sum().backward()
    assert torch.equal(first, before[0]) and not torch.equal(second, before[1])
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1]


def test_a_weight_that_is_used_twice_steps_once_with_the_whole_gradient():
    first, _, optimizer, inputs = _fit()
    step_in_backward(optimizer, 0)
    (inputs @ first @ first).square().sum().backward()
    assert optimizer.state[first]["step"] == 1


def test_several_processes_are_refused():
    with pytest.raises(UserError, match="2 processes"):
        report(fused_processes_findings(TrainingOptions(fused_backward_pass=True), 2))
    report(fused_processes_findings(TrainingOptions(), 2))


@pytest.mark.parametrize(
    ("name", "is_refused"),
    [("adamw", False), ("torch.optim.AdamW", False), ("transformers.Adafactor", False), ("torch.optim.Adam", True)],
)
def test_an_optimizer_is_known_by_each_of_its_names(name, is_refused):
    problems = fused_backward_findings(TrainingOptions(fused_backward_pass=True), OptimizerOptions(optimizer_type=name))
    assert bool(list(problems)) == is_refused


def test_a_gradient_that_is_not_finite_counts_as_zero_and_is_counted():
    """The weight of the other gradient learns on; that of this one, and its moments, hold no NaN."""
    first, second, optimizer, _ = _fit()
    zeroed = step_in_backward(optimizer, 1.0)
    before = first.detach().clone()
    (first.sum() * math.inf + second.sum()).backward()
    # AdamW of zero gradients is its weight decay alone, 0.01 by default; of equal ones a step of the learning rate
    torch.testing.assert_close(first.detach(), before * (1 - 0.1 * 0.01))
    assert all(value.isfinite().all() for value in optimizer.state[first].values())
    assert int(zeroed.take()) == 1 and int(zeroed.take()) == 0
    (first.sum() + second.sum()).backward()
    assert int(zeroed.take()) == 0
