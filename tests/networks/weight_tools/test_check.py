"""If this fails, a LoRA with NaN is taken for a good one, or a good one for broken."""

import math

import pytest
import torch

from networks.check_lora_weights import JOB
from tests.networks.weight_tools.conftest import LINEAR, TEXT, lora_tensors


def test_each_layer_is_shown_with_the_norm_of_its_update(run, lora):
    tensors = {
        f"{LINEAR}.lora_down.weight": torch.tensor([[3.0, 0.0], [0.0, -1.0]]),
        f"{LINEAR}.lora_up.weight": torch.tensor([[2.0, 0.0]]),
        f"{LINEAR}.alpha": torch.tensor(1.0),
    }
    path = lora("a.safetensors", tensors)
    # mean |down| = 4 / 4, mean |up| = 2 / 2, |update| = 1 / 2 * |(6, 0)|
    assert run(JOB, path).shown[-1].split() == ["2", "1", "1", "1", "3", LINEAR]
    assert f"{LINEAR}.lora_down.weight: 2x2, mean |x| 1, min |x| 0, max |x| 3" in run(JOB, path, "-s").shown


def test_layers_with_nan_fail_and_dead_ones_are_named(run, lora):
    tensors = lora_tensors(0)
    tensors[f"{LINEAR}.lora_up.weight"][1, 1] = math.nan
    tensors[f"{LINEAR}.lora_down.weight"][0, 0] = math.inf
    tensors[f"{TEXT}.lora_up.weight"].zero_()
    ended = run(JOB, lora("a.safetensors", tensors))
    assert ended.status == 1
    assert f"{LINEAR}: 2 values are NaN or infinite" in ended.lines
    assert f"1 layer has no effect, all its weights are zero: {TEXT}" in ended.lines


@pytest.mark.parametrize("part", ["dora_scale", "hada_w1_a"])
def test_other_adapters_are_shown_key_by_key(run, lora, part):
    names = ("lora_down.weight", "lora_up.weight", part)
    names = names if part == "dora_scale" else ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    tensors = {f"{LINEAR}.{name}": torch.ones(2, 2) for name in names}
    ended = run(JOB, lora("a.safetensors", tensors))
    assert ended.status == 0 and f"{LINEAR}.{part}: 2x2, mean |x| 1, min |x| 1, max |x| 1" in ended.shown
    tensors[f"{LINEAR}.{part}"][0, 1] = math.nan
    ended = run(JOB, lora("b.safetensors", tensors))
    assert ended.status != 0 and f"{LINEAR}: 1 value is NaN or infinite" in ended.lines


def test_what_is_no_lora_is_said_in_one_line(run, lora, tmp_path):
    missing = run(JOB, tmp_path / "none.safetensors")
    assert missing.status == 2 and "there is no such file" in missing.error[0]
    other = run(JOB, lora("b.safetensors", {"first_stage_model.x": torch.zeros(2)}))
    assert other.status == 2 and "is not the key of a LoRA weight" in other.error[0]


def test_a_file_of_diffusers_is_read(run, lora):
    """Without an alpha its rank is meant: the norm is that of lora_B @ lora_A, twelve times 2."""
    path = "unet.down_blocks.0.attentions.0.proj_in"
    weights = {f"{path}.lora_A.weight": torch.ones(2, 3), f"{path}.lora_B.weight": torch.ones(4, 2)}
    shown = run(JOB, lora("theirs.safetensors", weights, {})).shown[-1].split()
    assert shown == ["2", "2", "1", "1", "6.9282", "lora_unet_down_blocks_0_attentions_0_proj_in"]
