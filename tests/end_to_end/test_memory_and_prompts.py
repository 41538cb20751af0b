"""Flags about memory and prompts, each in a whole run: what they should leave alone stays, the rest changes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.end_to_end.runs import BASE, arguments, copy_images, logged, run_command, train

STEPS = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return copy_images(tmp_path_factory.mktemp("data"), 3)


@pytest.fixture(scope="module")
def plain(data: Path, tmp_path_factory) -> dict[str, torch.Tensor]:
    return _train_unet(data, tmp_path_factory.mktemp("plain"))


def _train_unet(data: Path, output: Path, **flags) -> dict[str, torch.Tensor]:
    return train(data, output, max_train_steps=STEPS, network_train_unet_only=True, logging_dir=None, **flags)


def _difference(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> float:
    assert weights.keys() == others.keys()
    return max((weights[name].float() - others[name].float()).abs().max().item() for name in weights)


@pytest.mark.parametrize(
    "flags",
    [
        {"cache_text_encoder_outputs": True},
        {"cache_text_encoder_outputs_to_disk": True, "cache_latents": True},
        {"mem_eff_attn": True, "vae_slicing": True},
        {"sdpa": True, "lowram": True, "highvram": True, "no_half_vae": True},
        pytest.param({"torch_compile": True, "dynamo_backend": "eager"}, marks=pytest.mark.slow),
    ],
)
def test_what_is_learned_stays_the_same(data: Path, plain, tmp_path: Path, flags: dict) -> None:
    assert _difference(_train_unet(data, tmp_path, **flags), plain) < 2e-5


@pytest.mark.parametrize(
    "flags",
    [
        {"fp8_base": True},
        {"mixed_precision": "bf16"},
        {"mixed_precision": "bf16", "full_bf16": True},
        {"clip_skip": 2},
        {"max_token_length": 150},
        {"weighted_captions": True, "caption_prefix": "(very:1.5)"},
    ],
)
def test_what_is_learned_changes_and_the_loss_stays_a_number(data: Path, plain, tmp_path: Path, flags: dict) -> None:
    weights = train(data, tmp_path, max_train_steps=STEPS, network_train_unet_only=True, **flags)
    assert 0 < _difference(weights, plain) < 0.1
    losses = [loss for _, loss in logged(tmp_path)]
    assert len(losses) == STEPS and all(0 < loss < 10 for loss in losses)


def test_a_run_in_half_precision_resumes_to_the_bit(data: Path, tmp_path: Path) -> None:
    flags = {"mixed_precision": "bf16", "full_bf16": True, "save_state": True, "save_every_n_steps": 2}
    whole = train(data, tmp_path / "whole", max_train_steps=4, **flags)
    train(data, tmp_path / "half", max_train_steps=2, **flags)
    resumed = train(data, tmp_path / "half", max_train_steps=4, resume=tmp_path / "half" / "run-state", **flags)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_xformers_without_the_package_is_a_warning(data: Path, tmp_path: Path) -> None:
    done = run_command(arguments(data, tmp_path, max_train_steps=1, xformers=True))
    assert done.returncode == 0, done.stderr
    assert "--xformers" in done.stderr + done.stdout
    assert (tmp_path / "run.safetensors").is_file()


def test_caching_captions_that_change_is_refused_before_anything_is_written(data: Path, tmp_path: Path) -> None:
    done = run_command(
        arguments(
            data, tmp_path / "out", cache_text_encoder_outputs=True, shuffle_caption=True, network_train_unet_only=True
        )
    )
    assert done.returncode == 2
    assert "shuffle_caption with --cache_text_encoder_outputs" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out").glob("*"))


def test_metadata_says_which_vae_and_prompt_options_were_used(data: Path, tmp_path: Path) -> None:
    vae = BASE / "vae" / "diffusion_pytorch_model.safetensors"
    train(data, tmp_path, max_train_steps=1, vae=vae, clip_skip=2, max_token_length=225, logging_dir=None)
    with safe_open(tmp_path / "run.safetensors", "pt") as file:
        metadata = file.metadata()
    digest = hashlib.sha256(vae.read_bytes()).hexdigest()
    assert (metadata["ss_vae_name"], metadata["ss_new_vae_hash"]) == (vae.name, digest)
    assert (metadata["ss_clip_skip"], metadata["ss_max_token_length"]) == ("2", "225")
