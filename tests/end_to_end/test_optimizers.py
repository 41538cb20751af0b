"""If these fail, an optimizer that the documents name does not learn in a real run, or does not resume exactly."""

import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

import train_network
from library.training.checkpoints.states import read_state
from library.training.optimization.optimizer_table import OPTIMIZERS
from tests.end_to_end.runs import ROOT, arguments, assert_same, copy_images, logged

STEPS, STATE_AT, LAST = 16, 10, 6

# One of each package and of each kind of state; tests/training/optimization has them all, on a small problem.
# The arguments are what suits so few steps: optimizers that find their step size begin at 1e-6 of it and need hundreds.
# A first guess `d0` brings them there, and `growth_rate` keeps the guess from overshooting.
RUNS: dict[str, tuple[float, tuple[str, ...]]] = {
    "AdamW": (3e-3, ()),
    "nadam": (3e-3, ()),
    "PagedAdamW8bit": (3e-3, ()),
    "Lion": (3e-3, ()),
    "DAdaptation": (1.0, ("d0=1e-3", "growth_rate=1.1")),
    "DAdaptSGD": (1.0, ("d0=0.1", "growth_rate=1.05")),
    "Prodigy": (1.0, ("d0=1e-4", "growth_rate=1.1")),
    # its own rate is a share of the weights' size, and half of a new LoRA's weights are 0
    "AdaFactor": (3e-3, ("scale_parameter=False",)),
    "RAdamScheduleFree": (3e-2, ()),
    "bitsandbytes.optim.AdEMAMix8bit": (3e-3, ()),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return copy_images(tmp_path_factory.mktemp("images") / "data", 3)


def run(data: Path, output: Path, *optimizer_args: str, **overrides: Any) -> list[float]:
    """A short run with a state in its middle and one at its end; the losses of its steps."""
    AcceleratorState._reset_state(reset_partial_state=True)
    options = {"cache_latents": True, "network_alpha": 4, "max_train_steps": STEPS, "save_state": True} | overrides
    extra = ["--optimizer_args", *optimizer_args] if optimizer_args else []
    train_network.train([*arguments(data, output, **options), *extra])
    return [loss for _, loss in logged(output)]


def differences(left: Any, right: Any, path: str = "") -> list[str]:
    """Where two nested states differ in any bit or type."""
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return [] if left.dtype == right.dtype and torch.equal(left, right) else [path]
    if isinstance(left, dict) and isinstance(right, dict) and left.keys() == right.keys():
        return [found for key in left for found in differences(left[key], right[key], f"{path}/{key}")]
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)) and len(left) == len(right):
        pairs = enumerate(zip(left, right, strict=True))
        return [found for index, pair in pairs for found in differences(*pair, f"{path}/{index}")]
    return [] if type(left) is type(right) and left == right else [path]


def tensors(state: Any, name: str = "") -> list[tuple[str, torch.Tensor]]:
    """(name, value) of every tensor of a nested state."""
    if isinstance(state, dict):
        return [found for key, value in state.items() for found in tensors(value, str(key))]
    return [(name, state)] if isinstance(state, torch.Tensor) else []


def assert_resumes_exactly(data: Path, whole: Path, resumed: Path, step: int, *optimizer_args: str, **options: Any):
    """Goes on from the state of `step` in `whole`, and ends with the same weights and the same state."""
    run(data, resumed, *optimizer_args, **options, resume=whole / f"run-step{step:08d}-state")
    assert_same(load_file(whole / "run.safetensors"), load_file(resumed / "run.safetensors"))
    ends = [read_state(str(folder / "run-state")) for folder in (whole, resumed)]
    assert_same(ends[0][0], ends[1][0])
    assert differences(ends[0][1], ends[1][1]) == []


@pytest.fixture(scope="module")
def untrained(data, tmp_path_factory) -> list[float]:
    """The losses of the same batches, with the same noise and timesteps, on weights that do not change."""
    return run(data, tmp_path_factory.mktemp("untrained"), learning_rate=0)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_learns_and_resumes_bit_for_bit(data, untrained, tmp_path, name):
    row = OPTIMIZERS.get(name)
    finds_its_step = row is not None and row.adapts
    rate, given = RUNS[name]
    options = {"optimizer_type": name, "learning_rate": rate, "save_every_n_steps": STATE_AT}
    losses = run(data, tmp_path / "whole", *given, **options)
    assert mean(losses[-LAST:]) < 0.97 * mean(untrained[-LAST:])
    estimates = logged(tmp_path / "whole", "lr/d*lr/unet")
    assert bool(estimates) == finds_its_step
    if finds_its_step:
        assert len(estimates) == STEPS and estimates[-1][1] > estimates[0][1]  # what it found, not what it was given
    assert_resumes_exactly(data, tmp_path / "whole", tmp_path / "resumed", STATE_AT, *given, **options)


@pytest.mark.parametrize("name", ["AdamW8bit", "PagedLion8bit"])
def test_8_bit_optimizers_keep_8_bits_and_lose_none(data, tmp_path, name):
    """A rank of 128 makes matrices of 4,096 numbers and more, which bitsandbytes keeps in 8 bits."""
    options = {"optimizer_type": name, "network_dim": 128, "max_train_steps": 4, "save_every_n_steps": 2}
    run(data, tmp_path / "whole", **options)
    optimizer = read_state(str(tmp_path / "whole" / "run-state"))[1]["optimizer"]
    kept = [value for name, value in tensors(optimizer) if name in ("state1", "state2")]
    is_large = [value.numel() >= 4096 for value in kept]
    assert any(is_large) and [value.dtype == torch.uint8 for value in kept] == is_large
    assert_resumes_exactly(data, tmp_path / "whole", tmp_path / "resumed", 2, **options)


@pytest.mark.parametrize(("name", "arguments_"), [("AdamW8bit", ()), ("AdaFactor", ("scale_parameter=False",))])
def test_weights_of_16_bits_resume_exactly(data, tmp_path, name, arguments_):
    """The optimizers keep float32 beside such weights; a state rounded to 16 bits goes on elsewhere."""
    options = {
        "optimizer_type": name,
        "network_dim": 128,
        "mixed_precision": "bf16",
        "full_bf16": True,
        "gradient_accumulation_steps": 2,
        "max_train_steps": 5,
        "save_every_n_steps": 3,
    }
    run(data, tmp_path / "whole", *arguments_, **options)
    weights, training = read_state(str(tmp_path / "whole" / "run-state"))
    assert {value.dtype for key, value in weights.items() if "lora" in key and "alpha" not in key} == {torch.bfloat16}
    assert torch.float32 in {value.dtype for _, value in tensors(training["optimizer"])}
    assert_resumes_exactly(data, tmp_path / "whole", tmp_path / "resumed", 3, *arguments_, **options)


def test_the_documented_recipe_of_adafactor(data, tmp_path, caplog):
    """A fixed rate after a warm-up, without a limit of the gradient, as docs/optimizers.md gives it."""
    recipe = ("relative_step=False", "scale_parameter=False", "warmup_init=False")
    options = {
        "optimizer_type": "AdaFactor",
        "lr_scheduler": "constant_with_warmup",
        "lr_warmup_steps": 4,
        "learning_rate": 4e-7,
        "max_grad_norm": 0.0,
        "max_train_steps": 6,
    }
    run(data, tmp_path, *recipe, **options)
    rates = [value for _, value in logged(tmp_path, "lr/unet")]
    assert rates == pytest.approx([0, 1e-7, 2e-7, 3e-7, 4e-7, 4e-7], rel=1e-6)
    assert "is added" not in caplog.text


def test_each_part_learns_at_its_own_rate(data, tmp_path):
    """With the documented second name of the text encoder's rate; a part of rate 0 stays as it is."""
    run(data, tmp_path / "own", learning_rate_te=1e-4, unet_lr=2e-3, max_train_steps=2)
    for part, rate in (("textencoder", 1e-4), ("unet", 2e-3)):
        assert [value for _, value in logged(tmp_path / "own", f"lr/{part}")] == pytest.approx([rate, rate])
    run(data, tmp_path / "zero", optimizer_type="Prodigy", learning_rate=1.0, learning_rate_te=0, max_train_steps=3)
    for name, value in load_file(tmp_path / "zero" / "run.safetensors").items():
        if name.endswith("lora_up.weight"):  # begins as 0
            assert bool(value.any()) == name.startswith("lora_unet")


HIDING = """
import importlib.abc, sys
class Hiding(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] == {package!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hiding())
import train_network
from library.cli.entry import run_entry
status = run_entry(lambda: train_network.train(sys.argv[1:]))
print("torch" in sys.modules)
sys.exit(status)
"""


@pytest.mark.parametrize(
    ("name", "package", "to_install"),
    [
        ("prodigy", "prodigyopt", "prodigyopt"),
        ("Lion", "lion_pytorch", "lion-pytorch"),
        ("lion_pytorch.lion_pytorch.Lion", "lion_pytorch", "lion-pytorch"),
    ],
)
def test_a_package_that_is_missing_is_named_at_once(data, tmp_path, name, package, to_install):
    argv = arguments(data, tmp_path, optimizer_type=name)
    command = [sys.executable, "-c", HIDING.format(package=package), *argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    said = f"--optimizer_type {name} needs the package {to_install}, which is not installed"
    assert done.stderr.splitlines() == [f"error: {said}", f"  pip install {to_install}"]
    assert (done.returncode, done.stdout) == (2, "False\n")
