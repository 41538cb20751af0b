"""If these fail, a run on a GPU learns something else than the same run on the CPU in float32 does.

Run with `python -m pytest -m gpu tests/gpu` where there is a GPU. Both draw the same random numbers (`SameDraws`). How
far a precision may be from float32 follows from its bits: bfloat16 rounds to 2^-9, half precision to 2^-12, fp8 (e4m3)
the frozen weights to 2^-4; the errors of the layers add up, in no direction in particular.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import train_network
from library.cli.errors import UserError
from tests.end_to_end.launches import TWO_PROCESSES, launch
from tests.end_to_end.runs import BASE, arguments, assert_same
from tests.end_to_end.whole_models import read_model
from tests.gpu.device_runs import COMMON, STEPS, losses, on_device, relative_error, train_lora, train_unet

# convolutions of a GPU take TF32 by PyTorch's default, which rounds to 2^-11
FLOAT32 = 0.02
BF16, FP16, FP8 = 0.06, 0.03, 0.5

ADAM = {"optimizer_type": "AdamW", "learning_rate": 3e-3, "max_train_steps": 2 * STEPS}


@pytest.fixture(scope="module")
def expected(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The LoRA of the CPU in float32, and its losses."""
    output = tmp_path_factory.mktemp("cpu")
    return train_lora("cpu", data_dir, output), losses(output)


@pytest.fixture(scope="module")
def losses_of_adam(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    output = tmp_path_factory.mktemp("cpu")
    train_lora("cpu", data_dir, output, **ADAM)
    return losses(output)


@pytest.fixture(scope="module")
def unet() -> dict[str, torch.Tensor]:
    return read_model(BASE)["unet"]


@pytest.fixture(scope="module")
def expected_unet(data_dir: Path, unet: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the CPU in float32 adds to the U-Net."""
    return train_unet("cpu", data_dir, tmp_path_factory.mktemp("cpu"), unet)


EVERYWHERE: dict[str, tuple[dict[str, Any], float]] = {
    "float32": ({}, FLOAT32),
    "chunked attention": ({"mem_eff_attn": True}, FLOAT32),
    "gradient checkpointing": ({"gradient_checkpointing": True}, FLOAT32),
    "bf16": ({"mixed_precision": "bf16"}, BF16),
    "full bf16": ({"mixed_precision": "bf16", "full_bf16": True}, BF16),
    "fp8": ({"mixed_precision": "bf16", "fp8_base": True}, FP8),
}
ON_GPU: dict[str, tuple[dict[str, Any], float]] = {
    "sdpa": ({"sdpa": True}, FLOAT32),
    "bf16, channels last": ({"mixed_precision": "bf16", "channels_last": True}, BF16),
    "latents encoded in the step": ({"cache_latents": None}, FLOAT32),
    "fp16 with a gradient scaler": ({"mixed_precision": "fp16"}, FP16),
    "full fp16": ({"mixed_precision": "fp16", "full_fp16": True}, FP16),
    "fp16 and fp8": ({"mixed_precision": "fp16", "fp8_base": True}, FP8),
    "compiled": ({"torch_compile": True}, FLOAT32),
    "compiled in bf16": ({"torch_compile": True, "mixed_precision": "bf16"}, BF16),
    "workers": ({"max_data_loader_n_workers": 2, "cache_latents": None}, FLOAT32),
}


def _check_lora(device: str, data: Path, output: Path, expected: Any, options: dict[str, Any], limit: float) -> None:
    weights, of_steps = expected
    found = train_lora(device, data, output, **options)
    assert relative_error(found, weights) < limit
    torch.testing.assert_close(losses(output), of_steps, rtol=limit, atol=0)


@pytest.mark.parametrize("case", [name for name in EVERYWHERE])
def test_a_lora_is_the_one_of_the_cpu_in_float32(device, data_dir, tmp_path, expected, case) -> None:
    _check_lora(device, data_dir, tmp_path, expected, *EVERYWHERE[case])


@pytest.mark.parametrize("case", [name for name in ON_GPU])
def test_a_lora_in_a_way_that_a_gpu_has_kernels_for_is_the_one_of_the_cpu(
    gpu, data_dir, tmp_path, expected, case
) -> None:
    _check_lora(gpu, data_dir, tmp_path, expected, *ON_GPU[case])


@pytest.mark.skipif(importlib.util.find_spec("xformers") is None, reason="the package xformers is not installed")
def test_attention_of_xformers_learns_the_same(gpu, data_dir, tmp_path, expected) -> None:
    _check_lora(gpu, data_dir, tmp_path, expected, {"xformers": True, "mixed_precision": "bf16"}, BF16)


@pytest.mark.parametrize("name", ["AdamW8bit", "PagedAdamW8bit", "PagedAdamW"])
def test_optimizers_with_8_bit_or_paged_states_learn_as_fast_as_adamw(
    device, data_dir, tmp_path, losses_of_adam, name
) -> None:
    """Losses, since a step of Adam has the size of its rate however small a gradient is: rounding turns its sign."""
    train_lora(device, data_dir, tmp_path, **(ADAM | {"optimizer_type": name}))
    torch.testing.assert_close(losses(tmp_path), losses_of_adam, rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({}, FLOAT32),
        ({"fused_backward_pass": True}, FLOAT32),
        ({"mixed_precision": "bf16", "gradient_checkpointing": True}, BF16),
        ({"deepspeed": True, "zero_stage": 2, "offload_optimizer_device": "cpu"}, FLOAT32),
    ],
    ids=["float32", "fused backward pass", "bf16", "offload"],
)
def test_a_whole_model_is_the_one_of_the_cpu_in_float32(
    device, data_dir, tmp_path, unet, expected_unet, options, limit
) -> None:
    found = train_unet(device, data_dir, tmp_path, unet, **options)
    assert relative_error(found, expected_unet) < limit


def test_a_run_resumes_to_the_bit_with_deterministic_kernels(device, data_dir, tmp_path) -> None:
    options = {"deterministic": True, "mixed_precision": "bf16", "optimizer_type": "AdamW8bit", "learning_rate": 1e-3}
    whole = train_lora(device, data_dir, tmp_path / "whole", **options)
    train_lora(device, data_dir, tmp_path / "part", **options, max_train_steps=STEPS // 2, save_state=True)
    resumed = train_lora(device, data_dir, tmp_path / "resumed", **options, resume=tmp_path / "part" / "run-state")
    assert_same(whole, resumed)


def test_sample_images_are_those_of_the_cpu(device, data_dir, tmp_path) -> None:
    (tmp_path / "prompts.txt").write_text("a shs fox --w 64 --h 64 --s 4 --d 1\n")
    options = {"sample_prompts": tmp_path / "prompts.txt", "sample_at_first": True, "max_train_steps": 1}
    images = []
    for place in ("cpu", device):
        train_lora(place, data_dir, tmp_path / f"on {len(images)}", **options)
        (first, *_) = sorted((tmp_path / f"on {len(images)}" / "sample").glob("*.png"))
        images.append(np.asarray(Image.open(first).convert("RGB"), dtype=np.float32))
    assert np.abs(images[0] - images[1]).mean() < 2  # of 255
    assert images[0].std() > 5  # something is drawn


def test_a_run_that_does_not_fit_says_what_would_help(gpu, data_dir, tmp_path) -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    large = {"resolution": 1024, "min_bucket_reso": 512, "max_bucket_reso": 2048, "train_batch_size": 4}
    argv = arguments(data_dir, tmp_path, **(COMMON | large))
    torch.cuda.set_per_process_memory_fraction(min(1.0, 2**30 / total))  # 1 GiB
    try:
        with pytest.raises(UserError, match="there is not enough memory for this run") as caught:
            on_device(gpu, lambda: train_network.train(argv))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "--gradient_checkpointing" in (caught.value.hint or "")


def test_two_gpus_train_what_one_does_with_twice_the_accumulation(gpu, data_dir, tmp_path) -> None:
    """By NCCL."""
    if torch.cuda.device_count() < 2:
        pytest.skip("there are no two GPUs")
    from safetensors.torch import load_file

    one = train_lora(gpu, data_dir, tmp_path / "one", gradient_accumulation_steps=2)
    # the processes draw on their devices: so does the one that they are compared with
    launch(arguments(data_dir, tmp_path / "two", **COMMON), *TWO_PROCESSES, ACCELERATE_USE_CPU="false")
    launch(
        arguments(data_dir, tmp_path / "again", **(COMMON | {"gradient_accumulation_steps": 2})),
        "--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        ACCELERATE_USE_CPU="false",
    )  # fmt: skip
    two, again = (load_file(tmp_path / name / "run.safetensors") for name in ("two", "again"))
    ups = {name for name in two if "lora_up" in name}
    assert ups == one.keys()
    assert relative_error({name: two[name] for name in ups}, {name: again[name] for name in ups}) < FLOAT32
