"""If these fail, an argument of an optimizer or a schedule is read as another value, or a mistake goes unanswered."""

import math

import pytest
import torch

from library.cli.errors import UserError
from library.cli.parser import parse_options
from library.training.method import ParamGroup
from library.training.optimization.key_value_args import read_pairs
from library.training.optimization.optimizers import make_optimizer
from library.training.optimization.options import OptimizerOptions

FLAG = "--optimizer_args"


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        (["weight_decay=1e-2"], {"weight_decay": 0.01}),
        (["betas=.9,.999"], {"betas": (0.9, 0.999)}),
        (["betas=(0.9, 0.99)", "eps = 1e-6 "], {"betas": (0.9, 0.99), "eps": 1e-6}),
        (["amsgrad=True", "foreach=None"], {"amsgrad": True, "foreach": None}),
        (["growth_rate=inf"], {"growth_rate": math.inf}),
        (["mode=fast", "name='a b=c'"], {"mode": "fast", "name": "a b=c"}),
        (["weight_decay=0.1 betas=0.9, 0.99 mode=x"], {"weight_decay": 0.1, "betas": (0.9, 0.99), "mode": "x"}),
        (["milestones=[3, 5]"], {"milestones": [3, 5]}),
        ([], {}),
        ([""], {}),
    ],
    ids=str,
)
def test_values_are_python_literals_or_words(arguments, values):
    found, problems = read_pairs(FLAG, arguments)
    assert problems == [] and found == values
    assert {key: type(value) for key, value in found.items()} == {key: type(value) for key, value in values.items()}


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["weight_decay", "0.1"], "--optimizer_args weight_decay is not key=value", "without spaces"),
        (["=3"], "=3 is not key=value", "key=value"),
        (["weight decay=3"], "is not key=value", "key=value"),
        (["weight_decay="], "'' is not a valid value", "a number"),
        (["weight_decay=O.1x!"], "'O.1x!' is not a valid value", "a number"),
        (["amsgrad=true"], "'true' is not a valid value", "write amsgrad=True"),
        (["eps=nan"], "'nan' is not a valid value", "write eps=a number"),
        (["eps=1e-6", "eps=1e-7"], "gives eps twice", "keep one"),
        (["eps=__import__('os')"], "is not a valid value", "a number"),
        (["eps=" + "(" * 500], "is not a valid value", "a number"),
    ],
)
def test_mistakes_are_answered(arguments, message, hint):
    problems = read_pairs(FLAG, arguments)[1]
    assert message in problems[0].message and problems[0].message.startswith(FLAG)
    assert hint in problems[0].hint and "\n" not in str(problems[0].message) + problems[0].hint


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("betas=0.9", "betas=0.9,0.999"),
        ("betas=0.9,0.99,0.9", "betas=0.9,0.999"),
        ("weight_decay=low", "weight_decay=0.01"),
        ("weight_decay=0.1,0.2", "weight_decay=0.01"),
        ("wieght_decay=0.1", "did you mean weight_decay?"),
        ("colour=3", "it takes betas"),
        ("betas=0.9,1.5", "check --optimizer_args"),
    ],
)
def test_values_that_an_optimizer_does_not_take_are_named(argument, hint):
    """AdamW would say that 'float' object is not subscriptable."""
    options = OptimizerOptions(optimizer_args=(argument,))
    with pytest.raises(UserError) as caught:
        make_optimizer(options, [ParamGroup("all", [torch.nn.Parameter(torch.zeros(2))], 1.0)])
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    "line",
    [
        'optimizer_args = ["weight_decay=0.25", "betas=0.5,0.75"]',
        'optimizer_args = "weight_decay=0.25 betas=0.5,0.75"',
        '[optimizer]\noptimizer_args = ["weight_decay=0.25 betas=(0.5, 0.75)"]',
    ],
)
def test_a_config_file_may_hold_a_list_or_one_text(tmp_path, line):
    (tmp_path / "run.toml").write_text(line)
    argv = ["--config_file", str(tmp_path / "run.toml")]
    options = parse_options(argv, [OptimizerOptions], program="x", description="")[OptimizerOptions]
    optimizer = make_optimizer(options, [ParamGroup("all", [torch.nn.Parameter(torch.zeros(2))], 1.0)])
    assert (optimizer.defaults["weight_decay"], optimizer.defaults["betas"]) == (0.25, (0.5, 0.75))


def test_a_learning_rate_among_the_arguments_is_refused():
    """It would be overruled by the rates of the parts without a word."""
    with pytest.raises(UserError, match="lr=0.1 is a learning rate"):
        parse_options([FLAG, "lr=0.1"], [OptimizerOptions], program="x", description="")
