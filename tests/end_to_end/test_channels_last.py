"""Channels-last weights compute, are cached and saved as others are; only the order of sums may differ."""

from __future__ import annotations

import torch

from library.models.family import LoadSettings
from library.models.options import ModelOptions, PromptOptions
from library.models.registry import load_family
from tests.end_to_end.runs import BASE, train
from tests.end_to_end.whole_models import read_model, train_whole


def test_frozen_parts_are_laid_out_and_the_model_is_the_same(tmp_path):
    parts = frozenset({"unet", "vae"})
    plain, laid_out = (
        load_family(ModelOptions(str(BASE)), PromptOptions(), LoadSettings(channels_last=each))
        for each in (frozenset(), parts)
    )
    for module in (laid_out.unet, laid_out.vae):
        weights = [param for param in module.parameters() if param.ndim == 4 and param.shape[1] > 1]
        assert weights and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    assert laid_out.vae_fingerprint() == plain.vae_fingerprint()  # a cache of one is good for the other
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.testing.assert_close(laid_out.encode_images(pixels, [1]), plain.encode_images(pixels, [1]), rtol=0, atol=1e-4)


def test_runs_end_as_without_it_up_to_rounding(data_dir, tmp_path):
    plain, laid_out = (
        train(data_dir, tmp_path / str(flag), max_train_steps=3, channels_last=flag, logging_dir=None)
        for flag in (False, True)
    )
    for name, tensor in plain.items():
        torch.testing.assert_close(laid_out[name], tensor, rtol=0, atol=2e-3)  # at a learning rate of 1e-3


def test_the_vae_of_a_whole_model_is_saved_as_it_was(data_dir, tmp_path):
    for flag in (False, True):
        train_whole("train_db", data_dir, tmp_path / str(flag), max_train_steps=1, channels_last=flag)
    plain, laid_out = (read_model(tmp_path / str(flag) / "run") for flag in (False, True))
    for name, tensor in plain["vae"].items():
        assert torch.equal(laid_out["vae"][name], tensor)
