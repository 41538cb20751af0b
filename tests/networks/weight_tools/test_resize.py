"""If this fails, a resized LoRA draws something else than its source, or is of another size than asked for."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from networks.resize_lora import JOB
from networks.weight_tools.factors import dynamic_rank
from tests.networks.weight_tools.conftest import CONV, LINEAR, METADATA, TEXT, lora_tensors, updates


def test_full_rank_is_the_identity_and_metadata_is_carried_on(run, lora, tmp_path):
    target = tmp_path / "resized.safetensors"
    assert run(JOB, "--model", lora("a.safetensors"), "--save_to", target, "--new_rank", 4).status == 0
    before, after = updates(lora_tensors(0)), updates(load_file(target))
    for name, update in before.items():
        torch.testing.assert_close(after[name], update, atol=1e-5, rtol=0)
    assert load_file(target)[f"{CONV}.lora_down.weight"].shape == (4, 5, 3, 3)
    with safe_open(target, "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_tag_frequency"] == METADATA["ss_tag_frequency"]
    assert metadata["sshs_model_hash"] != METADATA["sshs_model_hash"] and len(metadata["sshs_model_hash"]) == 64


def test_a_smaller_rank_is_the_best_approximation(run, lora, tmp_path):
    """Against NumPy: the truncated singular value decomposition of the whole update."""
    target = tmp_path / "resized.safetensors"
    words = ("--new_rank", 2, "--new_conv_rank", 1, "--save_precision", "float")
    assert run(JOB, "--model", lora("a.safetensors"), "--save_to", target, *words).status == 0
    after = updates(load_file(target))
    for name, update in updates(lora_tensors(0)).items():
        left, values, right = np.linalg.svd(update.numpy())
        rank = 1 if name == CONV else 2
        best = (left[:, :rank] * values[:rank]) @ right[:rank]
        np.testing.assert_allclose(after[name].numpy(), best, atol=1e-5)
    with safe_open(target, "pt") as file:
        metadata = file.metadata()
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("2", "1.0")  # alpha / rank stays 1 / 2
    assert json.loads(metadata["ss_network_args"]) == {"conv_dim": "1", "conv_alpha": "0.5"}


VALUES = (4.0, 2.0, 1.0, 1.0)  # their sum is 8, the sum of their squares 22


@pytest.mark.parametrize(
    ("method", "parameter", "rank"),
    [
        ("sv_ratio", 2, 1),  # above 4 / 2: 4 alone
        ("sv_ratio", 3, 2),
        ("sv_ratio", 5, 4),
        ("sv_cumulative", 0.5, 1),  # 4 / 8
        ("sv_cumulative", 0.6, 2),
        ("sv_cumulative", 0.8, 3),
        ("sv_fro", 0.85, 1),  # sqrt(16 / 22) = 0.853
        ("sv_fro", 0.95, 2),  # sqrt(20 / 22) = 0.953
        ("sv_fro", 0.97, 3),  # sqrt(21 / 22) = 0.977
        ("sv_fro", 0.99, 4),
    ],
)
def test_ranks_by_singular_values(method, parameter, rank):
    assert dynamic_rank(torch.tensor(VALUES), method, parameter, most=8) == rank
    assert dynamic_rank(torch.tensor(VALUES), method, parameter, most=2) == min(rank, 2)
    assert dynamic_rank(torch.zeros(3), method, parameter, most=8) == 1


def test_a_dynamic_method_gives_each_layer_its_own_rank(run, lora, tmp_path):
    """The first layer has one singular value, the others four about equal ones."""
    tensors, target = lora_tensors(0), tmp_path / "resized.safetensors"
    tensors[f"{TEXT}.lora_up.weight"][:, 1:] = 0
    words = ("--new_rank", 4, "--dynamic_method", "sv_ratio", "--dynamic_param", "1000", "--verbose")
    ended = run(JOB, "--model", lora("a.safetensors", tensors), "--save_to", target, *words)
    assert f"{TEXT}: rank 1 of 4, 100.0 % of the norm" in ended.lines
    resized = load_file(target)
    assert len(resized[f"{TEXT}.lora_down.weight"]) == 1 and len(resized[f"{LINEAR}.lora_down.weight"]) == 4
    torch.testing.assert_close(updates(resized)[TEXT], updates(tensors)[TEXT], atol=1e-5, rtol=0)
    with safe_open(target, "pt") as file:
        assert file.metadata()["ss_network_dim"] == "Dynamic"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--dynamic_method", "sv_fro"), "--dynamic_method sv_fro needs --dynamic_param"),
        (("--dynamic_method", "sv_fro", "--dynamic_param", "1.5"), "--dynamic_param 1.5 is not possible with"),
        (
            ("--dynamic_method", "sv_ratio", "--dynamic_param", "0.9"),
            "--dynamic_param 0.9 is not possible with",
        ),
    ],
)
def test_parameters_that_make_no_sense_are_said(run, lora, tmp_path, words, message):
    ended = run(JOB, "--model", lora("a.safetensors"), "--save_to", tmp_path / "b.safetensors", *words)
    assert ended.status == 2 and ended.error[0].startswith(message)


def test_a_loha_is_named_as_what_it_is(run, lora, tmp_path):
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "alpha")
    loha = lora("loha.safetensors", {f"lora_unet_x.{name}": torch.ones(2, 2) for name in names})
    ended = run(JOB, "--model", loha, "--save_to", tmp_path / "x.safetensors", "--new_rank", 1)
    assert ended.status == 2 and ended.error[0].endswith("loha.safetensors is a LoHa, not a LoRA")


def test_nan_is_said_and_nothing_is_written(run, lora, tmp_path):
    tensors, target = lora_tensors(0), tmp_path / "b.safetensors"
    tensors[f"{LINEAR}.lora_up.weight"][0, 0] = float("nan")
    ended = run(JOB, "--model", lora("a.safetensors", tensors), "--save_to", target)
    assert f"{LINEAR} has NaN or infinite values" in ended.error[0] and not target.exists()
