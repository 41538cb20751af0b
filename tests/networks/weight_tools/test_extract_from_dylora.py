"""If this fails, a LoRA that is taken from a DyLoRA draws something else than its ranks learned."""

import json

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from networks.extract_lora_from_dylora import JOB
from tests.networks.weight_tools.conftest import CONV, METADATA, lora_tensors, updates

OF_DYLORA = {**METADATA, "ss_network_module": "networks.dylora", "ss_network_args": '{"unit": "2", "conv_dim": "6"}'}


def test_the_first_ranks_are_a_lora_with_the_alpha(run, lora, tmp_path):
    """Valipour et al. 2022, equation 4: alpha / b times the product of the first b ranks."""
    tensors = lora_tensors(0, rank=6)
    ended = run(JOB, "--model", lora("d.safetensors", tensors, OF_DYLORA), "--save_to", tmp_path / "lora.safetensors")
    assert ended.status == 0, ended.error
    files = {int(path.stem[-4:]): path for path in tmp_path.glob("lora-*.safetensors")}
    assert sorted(files) == [2, 4, 6]
    for rank, path in files.items():
        for name, update in updates(load_file(path)).items():
            down = tensors[f"{name}.lora_down.weight"].double().flatten(1)[:rank]
            up = tensors[f"{name}.lora_up.weight"].double().flatten(1)[:, :rank]
            torch.testing.assert_close(update, 2.0 / rank * up @ down, atol=1e-6, rtol=0)
    assert load_file(files[2])[f"{CONV}.lora_down.weight"].shape == (2, 5, 3, 3)
    with safe_open(files[4], "pt") as file:
        metadata = file.metadata()
    assert (metadata["ss_network_module"], metadata["ss_network_dim"]) == ("networks.lora", "4")
    assert json.loads(metadata["ss_network_args"]) == {"conv_dim": "4", "conv_alpha": "2.0"}


def test_a_unit_that_is_missing_or_does_not_fit_is_said(run, lora, tmp_path):
    words = ("--model", lora("d.safetensors", lora_tensors(0)), "--save_to", tmp_path / "lora.safetensors")
    ended = run(JOB, *words)
    assert "does not say the unit" in ended.error[0] and "was trained with networks.lora" in ended.lines[0]
    assert "has the rank 4, which is no multiple of 3" in run(JOB, *words, "--unit", 3).error[0]
    assert not list(tmp_path.glob("lora-*"))
