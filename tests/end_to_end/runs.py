"""Runs of `train_network.py` on the quickstart's model and images, and readers of what they leave behind."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train_network
from tests import programs

ROOT = programs.ROOT
BASE = ROOT / "examples" / "quickstart" / "base"
IMAGES = ROOT / "examples" / "quickstart" / "images"
REGULARISATION = ROOT / "examples" / "quickstart" / "regularisation"


def copy_images(folder: Path, count: int = 5) -> Path:
    target = folder / "2_shs fox"
    target.mkdir(parents=True)
    for image in sorted(IMAGES.glob("*.png"))[:count]:
        shutil.copy(image, target)
        shutil.copy(image.with_suffix(".txt"), target)
    return folder


def arguments(data: Path, output: Path, **overrides) -> list[str]:
    """The command line of a short run; `overrides` are options, None to leave one out, True for a flag."""
    options = {
        "pretrained_model_name_or_path": BASE,
        "train_data_dir": data,
        "caption_extension": ".txt",
        "resolution": 64,
        "enable_bucket": True,
        "min_bucket_reso": 32,
        "max_bucket_reso": 128,
        "bucket_reso_steps": 8,
        "train_batch_size": 2,
        "max_data_loader_n_workers": 0,
        "output_dir": output,
        "output_name": "run",
        "learning_rate": 1e-3,
        "max_train_steps": 8,
        "seed": 7,
        "logging_dir": output / "logs",
        "no_run_report": True,  # its own tests ask for it
    } | overrides
    argv: list[str] = []
    for name, value in options.items():
        if value is True:
            argv.append(f"--{name}")
        elif value is not None and value is not False:
            argv += [f"--{name}", str(value)]
    return argv


def train(data: Path, output: Path, **overrides) -> dict[str, torch.Tensor]:
    """Runs in this process, as if in one of its own; gives the weights of the last save."""
    AcceleratorState._reset_state(reset_partial_state=True)
    train_network.train(arguments(data, output, **overrides))
    return load_file(output / "run.safetensors")


def run_command(argv: list[str], script: str = "train_network.py", **options) -> subprocess.CompletedProcess:
    """Runs in a process of its own; `options` as those of `programs.run`."""
    return programs.run([script, *argv], **options)


def start_command(argv: list[str], script: str = "train_network.py", **options) -> programs.Program:
    return programs.start([script, *argv], **options)


def logged(output: Path, name: str = "loss/current") -> list[tuple[int, float]]:
    """(step, value) of a curve, as TensorBoard reads it."""
    rows = []
    for folder in sorted((output / "logs").iterdir()):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
        if name in events.Tags()["scalars"]:
            rows += [(event.step, event.value) for event in events.Scalars(name)]
    return rows


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert different == []
