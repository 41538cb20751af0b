"""Runs on a device that draw what the same run on the CPU draws, so that the two can be compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch.overrides import TorchFunctionMode

import train_db
import train_network
from tests.end_to_end.runs import arguments, logged
from tests.end_to_end.whole_models import read_model

_DRAWS = (torch.randn, torch.rand, torch.randint)
STEPS = 4
# a step that is linear in the gradients, so that a relative error of these is one of the weights
COMMON = {
    "max_train_steps": STEPS, "optimizer_type": "SGDNesterov", "learning_rate": 0.1, "cache_latents": True,
    "max_grad_norm": 0,
}  # fmt: skip


class SameDraws(TorchFunctionMode):
    """Random numbers for a device are drawn on the CPU, by a generator of the same seed, and moved there."""

    def __init__(self) -> None:
        super().__init__()
        # the generators too, which keeps their numbers theirs
        self._twins: dict[int, tuple[torch.Generator, torch.Generator]] = {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        device = torch.device(kwargs.get("device") or "cpu")
        if function not in _DRAWS or device.type == "cpu":
            return function(*args, **kwargs)
        generator = kwargs.get("generator")
        if generator is not None:
            kwargs["generator"] = self._twin(generator)
        return function(*args, **{**kwargs, "device": "cpu"}).to(device)

    def _twin(self, generator: torch.Generator) -> torch.Generator:
        if id(generator) not in self._twins:
            twin = torch.Generator().manual_seed(generator.initial_seed())
            self._twins[id(generator)] = (generator, twin)
        return self._twins[id(generator)][1]


def on_device(device: str, work: Callable[[], None]) -> None:
    """Does the work of a run as a new process on that device would."""
    with pytest.MonkeyPatch.context() as patch, SameDraws():
        if device == "cpu":
            patch.setenv("ACCELERATE_USE_CPU", "true")
        AcceleratorState._reset_state(reset_partial_state=True)
        try:
            work()
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)


def train_lora(device: str, data: Path, output: Path, **options: Any) -> dict[str, torch.Tensor]:
    """The weights of a LoRA's `lora_up`, which begin at 0."""
    from safetensors.torch import load_file

    argv = arguments(data, output, **(COMMON | options))
    on_device(device, lambda: train_network.train(argv))
    weights = load_file(output / "run.safetensors")
    return {name: weight.float() for name, weight in weights.items() if "lora_up" in name}


def losses(output: Path) -> torch.Tensor:
    """(steps,): the loss of each step."""
    return torch.tensor([loss for _, loss in logged(output)])


def train_unet(device: str, data: Path, output: Path, before: dict[str, torch.Tensor], **options: Any) -> Any:
    """What training a whole model has added to the U-Net `before`, by name."""
    of_model = COMMON | {"optimizer_type": "AdamW", "train_batch_size": 1, "logging_dir": None}
    # nearly linear in the gradients too, which are far below this epsilon; and nothing but them moves the weights
    linear = ["--optimizer_args", "eps=1", "weight_decay=0"]
    argv = [*arguments(data, output, **(of_model | options)), *linear]
    on_device(device, lambda: train_db.train(argv))
    after = read_model(output / "run")["unet"]
    return {name: after[name].float() - weight.float() for name, weight in before.items()}


def relative_error(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """|found - expected| / |expected|, over all tensors together."""
    assert found.keys() == expected.keys() and found
    square = sum(float((found[name].double() - each.double()).square().sum()) for name, each in expected.items())
    return (square / sum(float(each.double().square().sum()) for each in expected.values())) ** 0.5
