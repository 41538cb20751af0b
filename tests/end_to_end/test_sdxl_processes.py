"""If these fail, two processes do not train of Stable Diffusion XL what one trains with twice the accumulation."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.end_to_end.launches import TWO_PROCESSES, launch
from tests.end_to_end.runs import arguments
from tests.end_to_end.sdxl_runs import USUAL, run

FSDP = (
    "--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP", *TWO_PROCESSES[1:],
)  # fmt: skip
# an epoch of 5 micro-batches: two steps of 2, and one of 1, in which a process has none
OPTIONS = {"max_train_steps": 4, "optimizer_type": "SGD", "gradient_checkpointing": True}

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("script", "launcher", "options"),
    [
        ("sdxl_train_network", TWO_PROCESSES, {"network_dim": 4, "learning_rate": 1.0, "flip_aug": True}),
        ("sdxl_train", FSDP, {"train_text_encoder": True, "learning_rate": 1e-2}),
    ],
    ids=["LoRA", "whole model in shards"],
)
def test_two_processes_train_what_one_does(tiny_sdxl, sdxl_base, sdxl_images, tmp_path, script, launcher, options):
    options = {"pretrained_model_name_or_path": sdxl_base, **USUAL, **OPTIONS, **options}
    one = load_file(run(script, sdxl_base, sdxl_images, tmp_path / "one", **options, gradient_accumulation_steps=2))
    launch(arguments(sdxl_images, tmp_path / "two", **options), *launcher, script=f"{script}.py")
    two = load_file(tmp_path / "two" / "run.safetensors")
    assert two.keys() == one.keys()
    assert max(float((two[name] - one[name]).abs().max()) for name in one) < 1e-6
    start, end = tiny_sdxl.unet.conv_out.weight, one.get("model.diffusion_model.out.2.weight")
    ups = [tensor for name, tensor in one.items() if "lora_up" in name]
    moved = torch.cat([up.flatten() for up in ups]) if end is None else end - start
    assert moved.abs().max() > 5e-4
