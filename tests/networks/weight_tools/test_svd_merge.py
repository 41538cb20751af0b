"""If this fails, LoRAs that are merged to one rank draw something else than both together."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from networks.svd_merge_lora import JOB
from networks.weight_tools.options.block_weights import parse_block_weights
from tests.networks.weight_tools.conftest import CONV, LINEAR, TEXT, lora_tensors, updates


def test_the_merge_is_the_best_approximation_of_the_sum(run, lora, tmp_path):
    """Against NumPy, with files of different ranks and alphas, one without a layer, and block weights for one."""
    one, two = lora_tensors(0), lora_tensors(1, rank=3, alpha=6.0)
    two = {key: tensor for key, tensor in two.items() if not key.startswith(TEXT)}
    target = tmp_path / "merged.safetensors"
    blocks = (",".join(["0.5", "2", *["0"] * 15]), ",".join(["1"] * 26))  # BASE and IN01 of the first
    words = ("--ratios", 0.7, "-0.4", "--lbws", *blocks, "--new_rank", 5, "--new_conv_rank", 2)
    ended = run(JOB, "--models", lora("a.safetensors", one), lora("b.safetensors", two), "--save_to", target, *words)
    assert ended.status == 0, ended.error
    first, second, found = updates(one), updates(two), updates(load_file(target))
    for name, factor, rank in ((TEXT, 0.5, 5), (LINEAR, 2, 5), (CONV, 2, 2)):
        whole = (0.7 * factor * first[name] - 0.4 * second.get(name, torch.zeros(()))).numpy()
        left, values, right = np.linalg.svd(whole)
        np.testing.assert_allclose(found[name].numpy(), (left[:, :rank] * values[:rank]) @ right[:rank], atol=1e-5)
    merged = load_file(target)
    assert merged[f"{CONV}.lora_down.weight"].shape == (2, 5, 3, 3) and float(merged[f"{CONV}.alpha"]) == 2
    assert len(merged[f"{TEXT}.lora_down.weight"]) == 4  # no more than there is


NUMBERS_26 = [0.5, *range(25)]  # BASE, IN00 to IN11, MID, OUT00 to OUT11


@pytest.mark.parametrize(
    ("numbers", "layer", "factor"),
    [
        (NUMBERS_26, "lora_te_text_model_encoder_layers_0_mlp_fc1", 0.5),
        (NUMBERS_26, "lora_unet_time_embedding_linear_1", 0.5),
        (NUMBERS_26, "lora_unet_down_blocks_3_resnets_1_conv1", 11),
        (NUMBERS_26, "lora_unet_mid_block_resnets_1_conv2", 12),
        (NUMBERS_26, "lora_unet_up_blocks_3_resnets_2_conv_shortcut", 24),
        (range(17), "lora_unet_down_blocks_1_attentions_0_proj_in", 3),  # BASE, IN01, IN02, IN04
        (range(17), "lora_unet_mid_block_attentions_0_proj_in", 7),
        (range(17), "lora_unet_up_blocks_3_attentions_2_proj_in", 16),  # OUT11
        (range(20), "lora_unet_input_blocks_8_1_proj_in", 9),
        (range(20), "lora_unet_middle_block_1_proj_in", 10),
        (range(20), "lora_unet_output_blocks_8_0_in_layers_2", 19),
        (range(12), "lora_unet_input_blocks_7_1_proj_in", 3),  # BASE, IN04, IN05, IN07
        (range(12), "lora_unet_output_blocks_5_1_proj_in", 11),
        (range(12), "lora_te2_text_model_encoder_layers_0_mlp_fc1", 0),
    ],
)
def test_block_weights_are_for_the_blocks_of_web_uis(numbers, layer, factor):
    assert parse_block_weights(f"[{','.join(map(str, numbers))}]").factor(layer) == factor


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (("--lbws", "1,2,3"), "--lbws 1,2,3: has 3 numbers", "give 26 or 17 numbers"),
        (("--lbws", "1,b"), "--lbws 1,b: not numbers", "give 26 or 17 numbers"),
        (("--lbws", ",".join(["1"] * 17), "--ratios", "1", "2"), "--ratios has 2 values", "one ratio for each"),
        (("--lbws", *[",".join(["1"] * 17)] * 2), "--lbws has 2 values, --models 1 files", "of each file"),
        (("--lbws", ",".join(["1"] * 20)), "--lbws with 20 numbers does not fit", "give 26 or 17 numbers"),
        (("--lbws", ",".join(["1"] * 17)), "has none for block IN03, which has", "26 numbers"),
    ],
)
def test_mistakes_are_said_in_one_line(run, lora, tmp_path, words, message, hint):
    tensors = {key.replace("resnets_0_conv1", "downsamplers_0_conv"): each for key, each in lora_tensors(0).items()}
    target = tmp_path / "merged.safetensors"
    ended = run(JOB, "--models", lora("a.safetensors", tensors), "--save_to", target, *words)
    assert ended.status == 2 and not target.exists()
    assert message in ended.error[0] and hint in "\n".join(ended.error)
