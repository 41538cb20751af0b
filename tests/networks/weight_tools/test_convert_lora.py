"""If this fails, a converted LoRA draws something else than its source, or Diffusers does not load it."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from networks.convert_lora import JOB
from tests.networks.weight_tools.conftest import CONV, LINEAR, METADATA, TEXT, lora_tensors, updates

THEIR_NAMES = {
    TEXT: "text_encoder.text_model.encoder.layers.0.mlp.fc1",
    LINEAR: "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    CONV: "unet.down_blocks.0.resnets.0.conv1",
}


def test_a_dora_becomes_diffusers_and_ours_again(run, lora, tmp_path):
    """Each update is kept, and so is the metadata; magnitudes have PEFT's shapes."""
    ours = lora_tensors(0) | {f"{LINEAR}.dora_scale": torch.rand(6, 1), f"{CONV}.dora_scale": torch.rand(7, 1, 1, 1)}
    theirs, again = tmp_path / "theirs.safetensors", tmp_path / "again.safetensors"
    assert run(JOB, "--model", lora("ours.safetensors", ours), "--save_to", theirs).status == 0
    written = load_file(theirs)
    for name, path in THEIR_NAMES.items():
        product = written[f"{path}.lora_B.weight"].flatten(1) @ written[f"{path}.lora_A.weight"].flatten(1)
        torch.testing.assert_close(product.double(), updates(lora_tensors(0))[name], rtol=0, atol=1e-5)
    assert written[f"{THEIR_NAMES[LINEAR]}.lora_magnitude_vector.weight"].shape == (6,)
    assert written[f"{THEIR_NAMES[CONV]}.lora_magnitude_vector.weight"].shape == (1, 7, 1, 1)
    with safe_open(theirs, "pt") as file:
        assert file.metadata()["ss_tag_frequency"] == METADATA["ss_tag_frequency"]
    assert run(JOB, "--model", theirs, "--save_to", again, "--save_precision", "fp16").status == 0
    back = load_file(again)
    assert set(back) == {key for key in ours if not key.endswith("alpha")}
    for key in back:
        expected = ours[key] / 2 if key.endswith("lora_up.weight") else ours[key]
        assert torch.equal(back[key], expected.half())


def test_what_cannot_be_converted_is_named(run, lora, tmp_path):
    other = {"lora_unet_input_blocks_1_0_emb_layers_1.hada_w1_a": torch.ones(2, 2)}
    ended = run(JOB, "--model", lora("other.safetensors", other), "--save_to", tmp_path / "x.safetensors")
    assert ended.status == 2 and "other.safetensors is a LoHa, not a LoRA" in ended.error[0]
    assert "sdxl_merge_lora.py merge this one into a model (--sd_model)" in ended.error[1]
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize("form", ["webui", "diffusers"])
def test_a_file_that_has_the_form_already_is_written_as_it_is(run, lora, tmp_path, form):
    source = lora("ours.safetensors")
    if form == "diffusers":
        run(JOB, "--model", source, "--save_to", tmp_path / "theirs.safetensors")
        source = tmp_path / "theirs.safetensors"
    ended = run(JOB, "--model", source, "--save_to", tmp_path / "same.safetensors", "--form", form)
    assert ended.status == 0 and f"has the form that --form {form} asks for already" in ended.lines[0]
    before, after = load_file(source), load_file(tmp_path / "same.safetensors")
    assert set(before) == set(after) and all(torch.equal(before[key], after[key]) for key in before)
