"""Runs that train concept LoRAs in a few steps: one entry that erases, and a slider."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

import train_leco
from tests.end_to_end.runs import arguments

SEED, STEPS, RATE, DENOISING, GUIDANCE = 69, 3, 1e-3, 8, 2.5
ERASE = {"target": "a frog", "positive": "frog", "neutral": "a cat", "unconditional": "blurry", "guidance_scale": 1.5}
SLIDER = {"target_class": "a ring", "positive": "big", "negative": "small", "multiplier": 1.5, "weight": 0.5}
ENTRIES = [{**ERASE, "batch_size": 2, "resolution": 64}, {"targets": [SLIDER], "resolution": 64}]


def argv_of(folder: Path, base: Path, **options) -> list[str]:
    prompts = folder.parent / "prompts.yaml"
    prompts.write_text(json.dumps(ENTRIES))  # JSON is YAML
    usual = {name: None for name in (
        "train_data_dir", "caption_extension", "resolution", "enable_bucket", "min_bucket_reso", "max_bucket_reso",
        "bucket_reso_steps", "train_batch_size", "max_data_loader_n_workers",
    )}  # fmt: skip
    own = {"pretrained_model_name_or_path": base, "prompts_file": prompts, "max_denoising_steps": DENOISING}
    more = {"leco_denoise_guidance_scale": GUIDANCE, "max_train_steps": STEPS, "learning_rate": RATE, "seed": SEED}
    return arguments(None, folder, **{**usual, **own, **more, **options})


def run(folder: Path, base: Path, script=train_leco, **options) -> dict[str, torch.Tensor]:
    AcceleratorState._reset_state(reset_partial_state=True)
    script.train(argv_of(folder, base, **options))
    return load_file(folder / "run.safetensors")
