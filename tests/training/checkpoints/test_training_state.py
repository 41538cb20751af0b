"""If these fail, a resumed run goes on with another learning rate, or another scale of its fp16 losses."""

import copy
import math

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from library.training.checkpoints.training_state import StatefulParts
from library.training.distributed.strategy import Replicated
from library.training.method import ParamGroup
from library.training.optimization.lr_schedules import make_lr_schedule
from library.training.optimization.options import OptimizerOptions

# PyTorch's, that the schedule was stepped before the optimizer: users look for a fault that is not there
pytestmark = pytest.mark.filterwarnings("error:.*lr_scheduler.step:UserWarning")

COSINE = OptimizerOptions(lr_scheduler="cosine", learning_rate=0.5)


@pytest.fixture
def accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def make_parts(accelerator, num_steps, scaler=None):
    """A weight of 1 that SGD trains with the rate 0.5, on a cosine over this many steps."""
    weight = nn.Parameter(torch.ones(1))
    groups = [ParamGroup("unet", [weight], 0.5)]
    strategy = Replicated(accelerator, groups, lambda groups: torch.optim.SGD(groups[0].params, lr=0.5))
    return weight, StatefulParts(strategy, make_lr_schedule(strategy.optimizer, COSINE, num_steps), scaler, None)


def step(parts, loss):
    parts.strategy.backward(loss)
    norm = parts.strategy.reduce_and_clip(math.inf)
    if torch.isfinite(norm):
        parts.strategy.step()
    else:
        parts.strategy.skip_step()
    parts.lr_schedule.step()
    parts.strategy.zero_grad()
    return norm


@pytest.mark.parametrize(("num_steps", "factor"), [(10, 0.0), (20, 0.5), (15, 0.25)])
def test_a_run_that_is_lengthened_goes_on_with_the_rate_of_its_new_schedule(accelerator, num_steps, factor):
    """At step n of N a cosine is at (1 + cos(pi n / N)) / 2; the old run ended at 0."""
    weight, parts = make_parts(accelerator, 10)
    for _ in range(10):
        step(parts, weight.sum())
    state = copy.deepcopy(parts.state())
    weight, parts = make_parts(accelerator, num_steps)
    parts.load(state, "run-state")
    step(parts, 2 * weight.sum())
    assert weight.item() == pytest.approx(1 - 0.5 * factor * 2, abs=1e-6)


@pytest.fixture
def scaler(accelerator):
    """Of fp16, on a CPU: it doubles the scale after two steps in a row."""
    accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
    return accelerator.scaler


def test_an_overflow_in_fp16_is_skipped_and_lowers_the_scale_which_then_grows_again(accelerator, scaler):
    """A gradient is that of the unscaled loss: the weight moves by 0.5 times 3."""
    weight, parts = make_parts(accelerator, 10**9, scaler)
    assert step(parts, 3 * weight.sum()).item() == 3
    assert weight.item() == pytest.approx(-0.5) and scaler.get_scale() == 8
    assert not math.isfinite(step(parts, 2.0**126 * weight.sum()).item())  # times 8 is beyond float32
    assert weight.item() == pytest.approx(-0.5) and scaler.get_scale() == 4
    for _ in range(2):
        step(parts, 3 * weight.sum())
    assert weight.item() == pytest.approx(-3.5) and scaler.get_scale() == 8


def test_a_resumed_run_has_the_scale_of_the_saved_one_and_what_it_has_towards_the_next(accelerator, scaler):
    weight, parts = make_parts(accelerator, 10**9, scaler)
    step(parts, 2.0**126 * weight.sum())
    step(parts, weight.sum())
    state = copy.deepcopy(parts.state())
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)
    weight, parts = make_parts(accelerator, 10**9, accelerator.scaler)
    parts.load(state, "run-state")
    assert accelerator.scaler.get_scale() == 4
    step(parts, weight.sum())  # the second good one in a row
    assert accelerator.scaler.get_scale() == 8
