"""What a device cannot do is refused in two lines, before a model is loaded."""

from __future__ import annotations

import pytest
import torch

from library.cli.checks import report
from library.cli.errors import UserError
from library.models.options import MemoryOptions
from library.training.devices import HalfGradScaler, make_accelerator, memory_findings, place_method
from library.training.options import TrainingOptions
from networks.lora_layer import LoRALayer


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_fp16_without_a_gpu_is_refused() -> None:
    with pytest.raises(UserError, match="--mixed_precision fp16 needs a GPU"):
        make_accelerator("fp16")


def test_a_backend_that_is_not_there_is_refused_with_those_that_are() -> None:
    report(memory_findings(MemoryOptions(torch_compile=True, dynamo_backend="aot_eager"), torch.device("cpu")))
    with pytest.raises(UserError, match="--dynamo_backend fx2trt is not available: this PyTorch has .*inductor"):
        report(memory_findings(MemoryOptions(torch_compile=True, dynamo_backend="fx2trt"), torch.device("cpu")))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_full_half_precision_demands_mixed_precision_of_the_same_kind(precision: str) -> None:
    options = TrainingOptions(mixed_precision="no", **{f"full_{precision}": True})
    (problem,) = options.check()
    assert f"--full_{precision} with --mixed_precision no" in problem.message
    assert list(TrainingOptions(mixed_precision=precision, **{f"full_{precision}": True}).check()) == []


def test_gradients_in_half_precision_are_unscaled_and_overflow_skips_the_step() -> None:
    """By the formula: scale 1024, gradient g * 1024, a step of SGD with rate 1 subtracts g; infinities skip it."""
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float16))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = HalfGradScaler("cpu", init_scale=1024.0)
    scaler.scale((weight.float() * torch.tensor([0.25, 0.5])).sum()).backward()
    assert weight.grad.tolist() == [256.0, 512.0]
    scaler.step(optimizer)
    scaler.update()
    assert weight.tolist() == [0.75, 1.5]
    weight.grad = torch.tensor([float("inf"), 1.0], dtype=torch.float16)
    scaler.scale(torch.zeros(()))
    scaler.step(optimizer)
    assert weight.tolist() == [0.75, 1.5]


class TrainsOneLayer:
    """A method with one LoRA layer of alpha 0.1."""

    def __init__(self):
        self.layer = LoRALayer("layer", torch.nn.Linear(4, 4), rank=2, alpha=0.1)

    def trainable_modules(self):
        return [self.layer]


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_full_half_precision_rounds_weights_and_not_alpha(precision, dtype) -> None:
    """Its file would say 0.1001, and a resumed run would learn with that."""
    method, full = TrainsOneLayer(), {f"full_{precision}": True}
    place_method(method, torch.device("cpu"), TrainingOptions(mixed_precision=precision, **full))
    assert {param.dtype for param in method.layer.parameters()} == {dtype}
    assert torch.equal(method.layer.state_dict()["alpha"], torch.tensor(0.1))
