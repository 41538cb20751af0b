"""If these fail, a run follows another learning-rate curve than asked for."""

import pytest
import torch

from library.cli.errors import UserError
from library.cli.parser import parse_options
from library.training.lr_schedules import make_lr_schedule
from library.training.options import OptimizerOptions

# rates of optimizer steps 0, 1, 5, 10, 11, 50 and 99 of 100 at base rate 1, as other trainers' users know them
CURVES = [
    ("constant", 0, [1, 1, 1, 1, 1, 1, 1]),
    ("constant_with_warmup", 10, [0, 0.1, 0.5, 1, 1, 1, 1]),
    ("linear", 0, [1, 0.99, 0.95, 0.9, 0.89, 0.5, 0.01]),
    ("linear", 10, [0, 0.1, 0.5, 1, 0.9888888888888889, 0.5555555555555556, 0.011111111111111112]),
    ("linear", 0.1, [0, 0.1, 0.5, 1, 0.9888888888888889, 0.5555555555555556, 0.011111111111111112]),
    ("linear", 150, [0, 1 / 150, 5 / 150, 10 / 150, 11 / 150, 50 / 150, 99 / 150]),
    ("cosine", 0, [1, 0.9997532801828658, 0.9938441702975689, 0.9755282581475768, 0.9704403844, 0.5, 0.0002467198]),
    ("cosine", 10, [0, 0.1, 0.5, 1, 0.9996954135095479, 0.5868240888334653, 0.00030458649]),
]


@pytest.mark.parametrize(("name", "warmup", "expected"), CURVES)
def test_curve(name, warmup, expected):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make_lr_schedule(optimizer, OptimizerOptions(lr_scheduler=name, lr_warmup_steps=warmup), 100)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert [rates[step] for step in (0, 1, 5, 10, 11, 50, 99)] == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("10", 10), ("0.1", 0.1), ("10%", 0.1), ("1", 1), ("100%", 1.0), ("5.5%", 0.055), ("0.999", 0.999)],
)
def test_warmup_is_a_number_of_steps_or_a_share(text, value):
    argv = ["--lr_scheduler", "linear", "--lr_warmup_steps", text]
    parsed = parse_options(argv, [OptimizerOptions], program="x", description="")[OptimizerOptions].lr_warmup_steps
    assert parsed == pytest.approx(value) and type(parsed) is type(value)


@pytest.mark.parametrize("text", ["1.0", "1.5", "abc", "x%", "-5", "nan", "true"])
def test_a_warmup_that_means_nothing_is_refused(text):
    with pytest.raises(UserError, match="lr_warmup_steps"):
        parse_options(["--lr_warmup_steps=" + text], [OptimizerOptions], program="x", description="")


def test_warmup_without_a_schedule_that_has_one_is_refused():
    with pytest.raises(UserError, match="constant has no warm-up"):
        parse_options(["--lr_warmup_steps", "10"], [OptimizerOptions], program="x", description="")
