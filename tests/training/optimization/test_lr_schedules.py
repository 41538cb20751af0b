"""If these fail, a run follows another learning-rate curve than asked for."""

import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from library.cli.checks import report
from library.cli.errors import UserError
from library.cli.options import convert, option_fields
from library.cli.parser import parse_options
from library.training.optimization.lr_schedules import (
    lr_factor,
    lr_schedule_findings,
    make_lr_schedule,
    schedule_name,
    warmup_steps,
)
from library.training.optimization.options import OptimizerOptions

# curves of 100 steps at base rate 1 as other trainers' users know them: rates of every 5th step, of step 1 and the last
CURVES = json.loads((Path(__file__).parent / "lr_curves.json").read_text())
KNOWN_STEPS = sorted({*range(0, 100, 5), 1, 99})


def options_of(*argv: str) -> OptimizerOptions:
    return parse_options(list(argv), [OptimizerOptions], program="x", description="")[OptimizerOptions]


def argv_of(options: dict) -> list[str]:
    argv = []
    for name, value in options.items():
        argv += [f"--{name}", *(value if isinstance(value, list) else [str(value)])]
    return argv


def curve(options: OptimizerOptions, num_steps: int = 100, base_rates=(1.0,), num_planned: int = 100) -> np.ndarray:
    """The rates that each step of a run finds in the optimizer: (steps, groups)."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in base_rates]
    optimizer = torch.optim.AdamW(groups)
    schedule = make_lr_schedule(optimizer, options, num_planned)
    rates = []
    for _ in range(num_steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return np.array(rates)


def assert_curve(found: np.ndarray, expected) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", CURVES, ids=lambda case: "-".join(argv_of(case["options"])))
def test_known_curve(case):
    options = dict(case["options"])
    num_planned = options.pop("max_train_steps", 100)
    rates = curve(options_of(*argv_of(options)), num_planned=num_planned)
    np.testing.assert_allclose(rates[KNOWN_STEPS, 0], case["rates"], rtol=0, atol=6e-9)


# whole curves by formulas of their own, on 40 steps after a warm-up of 10
T = np.arange(40)
FORMULAS = [
    (["linear"], 1 - T / 40),
    (["cosine"], np.cos(np.pi * T / 80) ** 2),
    (["cosine_with_restarts", "--lr_scheduler_num_cycles", "4"], np.cos(np.pi * (T % 10) / 20) ** 2),
    (["polynomial", "--lr_scheduler_power", "3", "--lr_scheduler_args", "lr_end=.25"], 0.25 + 0.75 * (1 - T / 40) ** 3),
    (["inverse_sqrt"], (10 / (10 + T)) ** 0.5),
    (["inverse_sqrt", "--lr_scheduler_timescale", "7"], (7 / (7 + T)) ** 0.5),
    (["cosine_with_min_lr", "--lr_scheduler_min_lr_ratio", "20e-2"], 0.2 + 0.8 * np.cos(np.pi * T / 80) ** 2),
    (
        ["warmup_stable_decay", "--lr_decay_steps", "40%"],
        np.where(T < 20, 1, np.cos(np.pi * (T - 20) / 40) ** 2),
    ),
]


@pytest.mark.parametrize(("argv", "expected"), FORMULAS, ids=lambda value: value[0] if isinstance(value, list) else "")
def test_whole_curve(argv, expected):
    rates = curve(options_of("--lr_scheduler", *argv, "--lr_warmup_steps", "20%"), 50, num_planned=50)
    assert_curve(rates[:, 0], [*np.arange(10) / 10, *expected])


def test_the_documented_spelling_of_the_arguments():
    options = options_of("--lr_scheduler", "polynomial", "--scheduler_args", "lr_end=0.5")
    assert_curve(curve(options)[:, 0], 0.5 + 0.5 * (1 - np.arange(100) / 100))


def test_every_group_follows_the_curve_at_its_own_rate():
    options = options_of("--lr_scheduler", "cosine", "--lr_warmup_steps", "0.1")
    wave = np.concatenate([np.arange(10) / 10, np.cos(np.pi * np.arange(90) / 180) ** 2])
    assert_curve(curve(options, base_rates=(1e-4, 3e-5, 0.0)), np.outer(wave, [1e-4, 3e-5, 0.0]))


def test_polynomial_ends_at_lr_end_in_every_group():
    """A group of a low rate, or one that does not learn, must not be lifted to the end rate."""
    options = options_of("--lr_scheduler", "polynomial", "--lr_scheduler_args", "lr_end=1e-6")
    rates = curve(options, 101, base_rates=(1e-4, 2e-6, 5e-7, 0.0))
    assert_curve(rates[100], [1e-6, 1e-6, 5e-7, 0])
    assert rates[50] == pytest.approx([(1e-4 + 1e-6) / 2, 1.5e-6, 5e-7, 0])


def test_after_the_last_step_no_curve_rises_again():
    """A resumed run may be longer than the plan of its curve."""
    for name, last in [("linear", 0), ("polynomial", 1e-7), ("cosine_with_restarts", 0), ("warmup_stable_decay", 0)]:
        options = options_of("--lr_scheduler", name, *(["--lr_decay_steps", "5"] if "decay" in name else []))
        assert_curve(curve(options, 30, num_planned=20)[20:, 0], [last] * 10)


def test_piecewise_constant_with_plain_text():
    """Without inner quotes the rules are no Python literal."""
    options = options_of("--lr_scheduler", "piecewise_constant", "--lr_scheduler_args", "step_rules=1:3, 0.5:5, 0")
    assert_curve(curve(options, 7)[:, 0], [1, 1, 1, 0.5, 0.5, 0, 0])


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("10", 10), ("0.1", 0.1), ("10%", 0.1), ("1", 1), ("100%", 1.0), ("5.5%", 0.055), ("0.999", 0.999)],
)
@pytest.mark.parametrize("name", ["lr_warmup_steps", "lr_decay_steps"])
def test_a_number_of_steps_or_a_share(name, text, value):
    parsed = getattr(options_of("--lr_scheduler", "linear", f"--{name}", text), name)
    assert parsed == pytest.approx(value) and type(parsed) is type(value)


@pytest.mark.parametrize("text", ["1.0", "1.5", "abc", "x%", "-5", "nan", "true"])
@pytest.mark.parametrize("name", ["lr_warmup_steps", "lr_decay_steps"])
def test_steps_that_mean_nothing_are_refused(name, text):
    with pytest.raises(UserError, match=name):
        options_of(f"--{name}={text}")


@pytest.mark.parametrize(
    "schedule",
    [
        [],
        ["--lr_scheduler", "piecewise_constant", "--lr_scheduler_args", "step_rules=1"],
        ["--lr_scheduler", "adafactor", "--optimizer_type", "adafactor"],
        ["--lr_scheduler_type", "StepLR", "--lr_scheduler_args", "step_size=25"],
    ],
    ids=["constant", "piecewise_constant", "adafactor", "class"],
)
def test_warmup_without_a_schedule_that_has_one_is_refused(schedule):
    with pytest.raises(UserError, match="has no warm-up, but --lr_warmup_steps is 10"):
        options_of(*schedule, "--lr_warmup_steps", "10")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["cosine_with_min_lr"], "needs --lr_scheduler_min_lr_ratio"),
        (["cosine_with_min_lr", "--lr_scheduler_min_lr_ratio", "1.5"], "1 or less"),
        (["cosine_with_restarts", "--lr_scheduler_num_cycles", "-1"], "1 or more"),
        (["polynomial", "--lr_scheduler_power", "-1"], "0 or more"),
        (["polynomial", "--lr_scheduler_args", "lr_ned=1e-6"], "did you mean lr_end"),
        (["polynomial", "--lr_scheduler_args", "lr_end=low"], "lr_end=low"),
        (["polynomial", "--lr_scheduler_args", "lr_end=True"], "lr_end=True"),
        (["linear", "--lr_scheduler_args", "power=2"], "takes none"),
        (["linear", "--lr_scheduler_args", "power"], "not key=value"),
        (["cosine", "--lr_scheduler_args", "num_cycles=1", "num_cycles=2"], "twice"),
        (["piecewise_constant"], "needs the argument step_rules"),
        (["piecewise_constant", "--lr_scheduler_args", "step_rules=1:10"], "factor:step"),
        (["piecewise_constant", "--lr_scheduler_args", "step_rules=1:10,0.5:5,0.1"], "rising steps"),
        (["piecewise_constant", "--lr_scheduler_args", "step_rules=1:10,nan"], "finite"),
        (["adafactor"], "--lr_scheduler adafactor with --optimizer_type AdamW"),
        (["adafactor:fast"], "did you mean adafactor?"),
        (["linear:0.1"], "did you mean linear?"),
        (["reduce_lr_on_plateau"], "one of"),
        (["CosineAnnealingRL"], "one of"),
        (["LRScheduler"], "one of"),
    ],
)
def test_mistakes_are_named(argv, message):
    with pytest.raises(UserError) as caught:
        options_of("--lr_scheduler", *argv)
    assert message in str(caught.value)
    assert "--lr_scheduler" in str(caught.value)


def test_several_mistakes_are_reported_together():
    with pytest.raises(UserError) as caught:
        options_of("--lr_scheduler", "polynomial", "--lr_scheduler_args", "power=2", "lr_end=x", "lr_end")
    said = ("power: polynomial has no such argument", "lr_end=x", "lr_end is not key=value")
    assert all(word in str(caught.value) for word in said)


def test_a_decay_that_does_not_fit_into_the_run_is_refused():
    options = options_of("--lr_scheduler", "warmup_stable_decay", "--lr_warmup_steps", "10", "--lr_decay_steps", "95%")
    with pytest.raises(
        UserError, match="--lr_warmup_steps 10 and --lr_decay_steps 95 are more than the run's 100 steps"
    ):
        report(lr_schedule_findings(options, 100))
    report(lr_schedule_findings(options, 200))  # 10 + 190 just fit


@pytest.mark.parametrize(("num_steps", "is_warned"), [(10, True), (11, False)])
def test_a_warmup_longer_than_the_run_is_warned_of(caplog, num_steps, is_warned):
    """Such a run learns at a part of its rate throughout."""
    report(lr_schedule_findings(options_of("--lr_scheduler", "cosine", "--lr_warmup_steps", "10"), num_steps))
    assert ("--lr_warmup_steps 10: the run ends after 10 steps" in caplog.text) == is_warned


def test_adafactor_is_known_by_its_class_too():
    options = options_of("--lr_scheduler", "adafactor", "--optimizer_type", "transformers.Adafactor")
    assert list(lr_schedule_findings(options, 100)) == []


def test_adafactor_schedule_without_relative_step_is_refused():
    """It would leave the rate wherever it was."""
    argv = ["--optimizer_type", "AdaFactor", "--optimizer_args", "relative_step=False"]
    with pytest.raises(
        UserError, match="--lr_scheduler adafactor needs --optimizer_type AdaFactor with relative_step=True"
    ):
        report(lr_schedule_findings(options_of("--lr_scheduler", "adafactor", *argv), 100))
    report(lr_schedule_findings(options_of("--lr_scheduler", "cosine", *argv), 100))


def test_relative_step_wins_over_the_schedule_given(caplog):
    """And says so, since the curve asked for is not the one that is followed."""
    options = options_of("--optimizer_type", "AdaFactor", "--lr_scheduler", "cosine")
    with caplog.at_level(logging.INFO):
        report(lr_schedule_findings(options, 100))
    assert "--lr_scheduler adafactor is used" in caplog.text
    assert schedule_name(options) == "adafactor"


def test_options_without_effect_are_warned_of(caplog):
    """Somebody who sets cycles for `cosine` would wait for restarts that never come."""
    with caplog.at_level(logging.WARNING):
        report(lr_schedule_findings(options_of("--lr_scheduler", "cosine", "--lr_scheduler_num_cycles", "3"), 100))
        assert "--lr_scheduler_num_cycles has no effect" in caplog.text
        caplog.clear()
        report(
            lr_schedule_findings(
                options_of("--lr_scheduler", "cosine_with_restarts", "--lr_scheduler_num_cycles", "3"), 100
            )
        )
    assert caplog.text == ""


def test_a_whole_wave_of_cosine():
    """`num_cycles` of `--lr_scheduler_args` counts whole waves: 1.5 end low after one return."""
    rates = curve(options_of("--lr_scheduler", "cosine", "--lr_scheduler_args", "num_cycles=1.5"), 61, num_planned=60)
    assert_curve(rates[[0, 10, 20, 40, 60], 0], [1, 0.5 * (1 + math.cos(math.pi / 2)), 0, 1, 0])


def test_a_class_can_be_named_by_either_option():
    """Cosine annealing over 10 steps: 0.5 (1 + cos(pi t / 10)), SGDR, arXiv:1608.03983, equation 5."""
    for flag in ("--lr_scheduler", "--lr_scheduler_type"):
        options = options_of(flag, "CosineAnnealingLR", "--scheduler_args", "T_max=10")
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
        schedule = make_lr_schedule(optimizer, options, 10)
        rates = []
        for _ in range(10):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        assert rates == pytest.approx([1 + math.cos(math.pi * step / 10) for step in range(10)])


def test_a_polynomial_of_power_0_is_constant():
    factor = lr_factor(options_of("--lr_scheduler", "polynomial", "--lr_scheduler_power", "0"), 10)
    assert [factor(step) for step in range(10)] == [1.0] * 10


@pytest.mark.parametrize(("given", "steps"), [("100", 100), (100.0, 100), (0.1, 0.1), ("10%", 0.1), (0, 0), (0.0, 0)])
def test_warm_up_steps_are_read_as_programs_write_them(given, steps):
    (field,) = (field for field in option_fields(OptimizerOptions) if field.name == "lr_warmup_steps")
    assert convert(field, given) == steps
    with pytest.raises(ValueError, match="whole number of steps, or a fraction"):
        convert(field, 1.0)  # one step, or all of them


@pytest.mark.parametrize(
    ("share", "num_steps", "steps"), [("0.25", 10, 2), ("0.1", 19, 1), ("0.1", 9, 0), ("3", 10, 3)]
)
def test_a_share_of_the_steps_is_rounded_down(share, num_steps, steps):
    """As the field's scripts do it: a warm-up never takes more than its share."""
    assert warmup_steps(options_of("--lr_scheduler", "cosine", "--lr_warmup_steps", share), num_steps) == steps
