"""If this fails, a merged LoRA or model draws something else than the LoRAs it was made from."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from networks.merge_lora import JOB
from tests.networks.weight_tools.conftest import CONV, LINEAR, METADATA, TEXT, lora_tensors, updates


def metadata_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def assert_updates(path, expected, atol=1e-5):
    found = updates(load_file(path))
    assert found.keys() == expected.keys()
    for name, update in expected.items():
        torch.testing.assert_close(found[name], update, atol=atol, rtol=0)


def test_concat_is_exactly_the_weighted_sum(run, lora, tmp_path):
    """Ranks, alphas and the sign of the ratios differ; a layer is in one file alone; ranks are shuffled."""
    one, two = lora_tensors(0), lora_tensors(1, rank=3, alpha=6.0)
    two = {key: tensor for key, tensor in two.items() if not key.startswith(TEXT)}
    paths, target = (lora("a.safetensors", one), lora("b.safetensors", two)), tmp_path / "merged.safetensors"
    words = ("--models", *paths, "--ratios", 0.7, "-0.4", "--save_to", target, "--concat", "--shuffle")
    assert run(JOB, *words).status == 0
    first, second = updates(one), updates(two)
    assert_updates(target, {name: 0.7 * first[name] - 0.4 * second.get(name, 0.0) for name in first})
    merged = load_file(target)
    assert len(merged[f"{LINEAR}.lora_down.weight"]) == 7 and merged[f"{CONV}.lora_down.weight"].shape == (7, 5, 3, 3)
    assert merged[f"{CONV}.lora_up.weight"].shape == (7, 7, 1, 1)
    metadata = metadata_of(target)
    assert metadata["ss_training_comment"] == "merged from a x 0.7, b x -0.4"
    assert metadata["ss_base_model_version"] == "sd_v1" and metadata["ss_network_dim"] == "Dynamic"
    assert json.loads(metadata["ss_network_args"])["conv_dim"] == "7"
    assert len(metadata["sshs_model_hash"]) == 64


def test_without_concat_the_factors_are_added_up(run, lora, tmp_path):
    """The halves of two equal LoRAs are that LoRA, a negative ratio takes it away, a layer of one file is exact."""
    one, two = lora_tensors(0, alpha=2.0), lora_tensors(1, alpha=8.0)  # scales 1/2 and 2: their root is 1 to 2
    del two[f"{TEXT}.alpha"], two[f"{TEXT}.lora_up.weight"], two[f"{TEXT}.lora_down.weight"]
    a, b, target = lora("a.safetensors", one), lora("b.safetensors", two), tmp_path / "merged.safetensors"
    ended = run(JOB, "--models", a, b, "--ratios", 0.6, "-0.5", "--save_to", target)
    assert ended.status == 0 and any("is not the sum of their updates" in line for line in ended.lines)
    expected = {TEXT: 0.6 * updates(one)[TEXT]}
    for name in (LINEAR, CONV):
        downs, ups = (
            [each[f"{name}.lora_{part}.weight"].double().flatten(1) for each in (one, two)] for part in ("down", "up")
        )
        expected[name] = 0.5 * (0.6 * ups[0] + 0.5 * 2 * ups[1]) @ (0.6 * downs[0] - 0.5 * 2 * downs[1])
    assert_updates(target, expected)
    assert run(JOB, "--models", a, a, "--ratios", 0.5, 0.5, "--save_to", target).status == 0
    assert_updates(target, updates(one))
    assert metadata_of(target)["ss_tag_frequency"] == METADATA["ss_tag_frequency"]
    assert metadata_of(target)["ss_network_alpha"] == "2.0"


def test_block_weights_and_files_of_peft(run, lora, tmp_path):
    """A layer of the text encoder (BASE) and two of block IN01; of the second file under PEFT's name of one."""
    one, target = lora_tensors(0), tmp_path / "merged.safetensors"
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    down, up = torch.randn(2, 10), torch.randn(6, 2)
    peft = lora("peft.safetensors", {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up})
    blocks = (",".join(["0.5", "2", *["0"] * 15]), ",".join(["3", "1", *["0"] * 15]))
    words = ("--models", lora("a.safetensors", one), peft, "--lbws", *blocks, "--concat", "--save_to", target)
    assert run(JOB, *words).status == 0
    first = updates(one)
    whole = 2 * first[LINEAR] + up.double() @ down.double()
    assert_updates(target, {TEXT: 0.5 * first[TEXT], CONV: 2 * first[CONV], LINEAR: whole})


def test_no_metadata_keeps_what_programs_need(run, lora, tmp_path):
    target = tmp_path / "merged.safetensors"
    paths = lora("a.safetensors"), lora("b.safetensors")
    assert run(JOB, "--models", *paths, "--save_to", target, "--no_metadata", "--precision", "fp16").status == 0
    metadata = metadata_of(target)
    assert metadata["ss_base_model_version"] == "sd_v1" and "ss_tag_frequency" not in metadata
    assert {tensor.dtype for tensor in load_file(target).values()} == {torch.float16}


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (("a", "b", "--ratios", "1"), "--ratios has 1 values, --models 2 files", "give one ratio for each file"),
        (("a", "wide"), "has the rank 4 in", "--concat"),
        (("a", "wide", "--sd_model", "none.safetensors"), "--sd_model none.safetensors: there is no such", "check"),
        (("a", "none"), "there is no such file", "check the path"),
        (("a", "other", "--concat"), "has the shape (6, 10) in", "SD 1.x, SD 2.x and SDXL do not fit"),
    ],
)
def test_mistakes_are_said_in_one_line(run, lora, tmp_path, words, message, hint):
    lora("a.safetensors"), lora("b.safetensors"), lora("wide.safetensors", lora_tensors(1, rank=8))
    lora(
        "other.safetensors",
        {f"{LINEAR}.lora_down.weight": torch.ones(4, 12), f"{LINEAR}.lora_up.weight": torch.ones(6, 4)},
    )
    paths = [tmp_path / f"{word}.safetensors" if word.isalpha() else word for word in words]
    target = tmp_path / "merged.safetensors"
    ended = run(JOB, "--save_to", target, "--models", *paths)
    assert ended.status == 2 and message in ended.error[0] and hint in ended.error[1] and not target.exists()
