"""If these fail, a schedule that a user names by its class is made wrongly, or fails hours into the run."""

import math

import numpy as np
import pytest
import torch

from library.cli.checks import report
from library.cli.errors import UserError
from library.training.optimization.lr_schedules import lr_schedule_findings, make_lr_schedule
from tests.training.optimization.test_lr_schedules import assert_curve, curve, options_of

OWN = """
from torch.optim.lr_scheduler import LRScheduler

class Halving(LRScheduler):
    def __init__(self, optimizer, steps, names=("a",)):
        self.steps, self.names = steps, names
        super().__init__(optimizer)

    def get_lr(self):
        return [base * 0.5 ** (self.last_epoch // self.steps) for base in self.base_lrs]

class Forgetful(Halving):
    def state_dict(self):
        return {"draw": lambda: 0}

class Refusing(Halving):
    def __init__(self, optimizer, steps):
        raise ValueError("steps must be a prime number")

class Other:
    pass
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "shs_own_schedules.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return "shs_own_schedules"


def class_options(name: str, *arguments: str):
    return options_of("--lr_scheduler_type", name, *(["--lr_scheduler_args", *arguments] if arguments else []))


def test_one_cycle():
    """From max_lr / 25 up to max_lr in 30% of the steps, then down to 1/10,000 of the start (arXiv:1708.07120)."""
    rates = curve(class_options("OneCycleLR", "max_lr=1.0", "total_steps=101"))[:, 0]

    def wave(start, end, share):
        return end + (start - end) / 2 * (1 + math.cos(math.pi * share))

    top = 0.3 * 101 - 1
    expected = [
        wave(0.04, 1, step / top) if step <= top else wave(1, 4e-6, (step - top) / (100 - top)) for step in range(100)
    ]
    assert_curve(rates, expected)


def test_a_class_that_ends_before_the_run_is_refused_before_it():
    """It would end the run in the middle, without a save."""
    options = class_options("OneCycleLR", "max_lr=1e-3", "total_steps=100")
    report(lr_schedule_findings(options, 100))
    with pytest.raises(UserError, match="--lr_scheduler_type OneCycleLR ends with step 101 of 160") as caught:
        report(lr_schedule_findings(options, 160))
    assert "--lr_scheduler_args" in caught.value.hint


def test_a_class_of_ones_own(own_module):
    options = class_options(f"{own_module}.Halving", "steps=3", "names=('x', 'y')")
    report(lr_schedule_findings(options, 100))
    assert_curve(curve(options, 7, base_rates=(1.0, 0.1)), np.outer([1, 1, 1, 0.5, 0.5, 0.5, 0.25], [1.0, 0.1]))


def test_the_class_wins_over_the_named_schedule():
    options = options_of(
        "--lr_scheduler", "cosine", "--lr_scheduler_type", "ExponentialLR", "--lr_scheduler_args", "gamma=0.5"
    )
    assert_curve(curve(options, 4)[:, 0], [1, 0.5, 0.25, 0.125])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("StepRL", [], "did you mean StepLR"),
        ("no_such_package.Class", [], "cannot be imported"),
        ("torch.optim.lr_scheduler.NoSuchLR", [], "is not a learning-rate scheduler class"),
        ("{own}.Other", [], "is not a learning-rate scheduler class"),
        ("torch.optim.AdamW", [], "is not a learning-rate scheduler class"),
        ("ReduceLROnPlateau", [], "not on the step"),
        ("StepLR", [], "step_size"),
        ("StepLR", ["step_size=5", "gama=0.1"], "gama"),
        ("StepLR", ["step_size=5", "gamma=low"], "gamma=low"),
    ],
)
def test_mistakes_are_found_before_the_model_is_loaded(own_module, name, arguments, message):
    with pytest.raises(UserError, match="--lr_scheduler_(type|args)") as caught:
        report(lr_schedule_findings(class_options(name.format(own=own_module), *arguments), 100))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("{own}.Refusing", ["steps=4"], "steps must be a prime number"),
        ("OneCycleLR", ["max_lr=1"], "cannot be created"),  # neither total_steps nor epochs
        ("{own}.Forgetful", ["steps=4"], "cannot be saved and loaded"),
    ],
)
def test_a_class_that_refuses_is_named(own_module, name, arguments, message):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(UserError, match=message):
        make_lr_schedule(optimizer, class_options(name.format(own=own_module), *arguments), 100)


def test_arguments_that_are_no_pairs_are_refused_with_the_options():
    with pytest.raises(UserError, match="--lr_scheduler_args gamma is not key=value"):
        class_options("StepLR", "gamma")
