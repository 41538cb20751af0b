"""What a device cannot do is refused in two lines, before a model is loaded."""

from __future__ import annotations

import os

import pytest
import torch
from accelerate.state import AcceleratorState

from library.cli.checks import report
from library.cli.errors import UserError
from library.models.devices import choose_device
from library.models.options import MemoryOptions
from library.training.devices import (
    HalfGradScaler,
    determinism_errors,
    make_accelerator,
    memory_findings,
    place_method,
    precision_findings,
    set_numerics,
)
from library.training.options import TrainingOptions
from networks.adapters.lora_layer import LoRALayer


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_fp16_without_a_gpu_is_refused() -> None:
    with pytest.raises(UserError, match="--mixed_precision fp16 needs a GPU"):
        make_accelerator("fp16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_mac_trains_on_mps_and_other_machines_on_the_cpu(monkeypatch) -> None:
    def chosen(precision: str) -> tuple[str, str]:
        AcceleratorState._reset_state(reset_partial_state=True)
        return choose_device(None).type, make_accelerator(precision).device.type

    assert chosen("bf16") == ("cpu", "cpu")
    for name in ("is_available", "is_built"):
        monkeypatch.setattr(torch.backends.mps, name, lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *version: version <= (13, 0))
    assert chosen("no") == ("mps", "mps")
    with pytest.raises(UserError, match="--mixed_precision bf16 on MPS needs macOS 14"):
        chosen("bf16")
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_backend_that_is_not_there_is_refused_with_those_that_are() -> None:
    report(memory_findings(MemoryOptions(torch_compile=True, dynamo_backend="aot_eager"), torch.device("cpu")))
    with pytest.raises(UserError, match="--dynamo_backend fx2trt is not available: this PyTorch has .*inductor"):
        report(memory_findings(MemoryOptions(torch_compile=True, dynamo_backend="fx2trt"), torch.device("cpu")))


def test_deterministic_asks_pytorch_for_it_and_names_the_operation_that_cannot(monkeypatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        set_numerics(TrainingOptions(deterministic=True), torch.device("cpu"))
        assert torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic
        # one of the two sizes with which cuBLAS promises the same results
        assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG") == ":4096:8"
        with pytest.raises(UserError, match="no deterministic algorithm of put_"), determinism_errors():
            torch.zeros(3).put_(torch.tensor([1, 1]), torch.tensor([1.0, 2.0]))
    finally:
        set_numerics(TrainingOptions(), torch.device("cpu"))
    assert not torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.deterministic
    with pytest.raises(RuntimeError, match="size"), determinism_errors():
        torch.zeros(2) + torch.zeros(3)


def test_tf32_is_used_on_gpus_where_it_is_asked_for(monkeypatch) -> None:
    chosen: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", chosen.append)
    for allowed in (True, False):
        set_numerics(TrainingOptions(allow_tf32=allowed), torch.device("cuda"))
        set_numerics(TrainingOptions(allow_tf32=allowed), torch.device("cpu"))
    assert chosen == ["high", "highest"]
    (warning,) = precision_findings(TrainingOptions(allow_tf32=True), torch.device("cpu"))
    assert "--allow_tf32 does nothing on cpu" in str(warning)
    assert not list(precision_findings(TrainingOptions(allow_tf32=True), torch.device("cuda")))


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
