"""If these fail, docs/optimizers.md recommends what does not work, or hides what does."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from library.cli.checks import report
from library.cli.parser import parse_options
from library.methods.options import NetworkOptions
from library.training.method import ParamGroup
from library.training.optimization.lr_curves import SCHEDULES
from library.training.optimization.lr_schedules import lr_schedule_findings
from library.training.optimization.optimizer_state import start_training
from library.training.optimization.optimizer_table import OPTIMIZERS, find_optimizer
from library.training.optimization.optimizers import make_optimizer, optimizer_findings, rate_findings
from library.training.optimization.options import OptimizerOptions
from library.training.options import TrainingOptions

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "optimizers.md").read_text(encoding="utf-8")
RECIPES = re.findall(r"```sh\n(.+?)\n```", PAGE, re.DOTALL)
# (names, bytes for each number that learns, package) of the table of optimizers
ROWS = [
    (re.findall(r"`(\w+)`", names), int(size), package)
    for names, size, package in re.findall(r"^\| (`.+?`) \| .+? \| (\d+) \| (\S+) \|$", PAGE, re.MULTILINE)
]


def test_the_tables_are_complete():
    assert sorted(name for names, _, _ in ROWS for name in names) == sorted(OPTIMIZERS)
    assert all(find_optimizer(name).package == package for names, _, package in ROWS for name in names)
    assert re.findall(r"^\| `([a-z_]+)` \|", PAGE, re.MULTILINE) == list(SCHEDULES)


@pytest.mark.parametrize(("name", "size"), [(name, size) for names, size, _ in ROWS for name in names])
def test_the_memory_is_what_the_optimizer_takes(name, size):
    param = torch.nn.Parameter(torch.ones(256, 256))
    options = OptimizerOptions(optimizer_type=name, learning_rate=1.0)
    optimizer = make_optimizer(options, [ParamGroup("all", [param], 1.0)])
    start_training(optimizer)
    for _ in range(2):
        param.grad = torch.ones_like(param)
        optimizer.step()
    # tables of 8-bit values are shared by all parameters
    state = {key: value for key, value in optimizer.state[param].items() if not key.startswith("qmap")}
    kept = {value.data_ptr(): value.nbytes for value in state.values() if isinstance(value, torch.Tensor)}
    assert sum(kept.values()) / param.numel() == pytest.approx(size, abs=0.05)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipes_are_taken_without_a_warning(recipe, caplog):
    groups = (TrainingOptions, OptimizerOptions, NetworkOptions)
    options = parse_options(shlex.split(recipe), groups, program="x", description="")[OptimizerOptions]
    report(optimizer_findings(options))
    report(rate_findings(options, [ParamGroup("unet", [], options.learning_rate)]))
    report(lr_schedule_findings(options, 1600))
    assert len(RECIPES) == 8 and caplog.text == ""
