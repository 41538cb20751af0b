"""If this fails, an extracted LoRA does not bring the original model to the tuned one."""

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from library.models.options import ModelOptions
from library.models.registry import load_family
from networks.adapters.targets import text_encoder_layers, unet_layers
from networks.extract_lora_from_models import JOB
from tests.networks.weight_tools.conftest import CONV, LINEAR, updates
from tests.tiny_models import make_tiny, to_stability_layout, write_folder

SAME = "lora_te_text_model_encoder_layers_1_mlp_fc2"  # a layer that is not changed


@pytest.fixture(scope="module", params=[False, True], ids=["sd1", "sd2"])
def models(request, tmp_path_factory):
    """A model as a file, the same with a known change of low rank as a folder, and these changes as matrices."""
    folder, tiny = tmp_path_factory.mktemp("models"), make_tiny(request.param)
    save_file(to_stability_layout(tiny), folder / "org.safetensors")
    generator = torch.Generator().manual_seed(5)
    changes = {}
    for target in (*text_encoder_layers(tiny.text_encoder), *unet_layers(tiny.unet, convolutions=True)):
        if target.name != SAME:
            weight, rank = target.module.weight, 2 if target.module.weight.shape[-1] == 3 else 3
            matrix = weight.detach().flatten(1)
            up, down = (torch.randn(size, rank, generator=generator) for size in matrix.shape)
            changes[target.name] = 0.02 * up @ down.T
            with torch.no_grad():
                weight += changes[target.name].reshape(weight.shape)
    write_folder(tiny, folder / "tuned")
    return folder, changes


def extract(run, folder, target, *words):
    return run(
        JOB, "--model_org", folder / "org.safetensors", "--model_tuned", folder / "tuned", "--save_to", target, *words
    )


def test_a_known_change_of_low_rank_is_recovered(run, models, tmp_path):
    folder, changes = models
    target = tmp_path / "lora.safetensors"
    ended = extract(run, folder, target, "--dim", 3, "--conv_dim", 2, "--clamp_quantile", 1)
    assert ended.status == 0, ended.error
    found = updates(load_file(target))
    assert found.keys() == changes.keys()
    for name, change in changes.items():
        torch.testing.assert_close(found[name], change.double(), atol=1e-4, rtol=0)
    assert load_file(target)[f"{CONV}.lora_down.weight"].shape == (2, 32, 3, 3)
    with safe_open(target, "pt") as file:
        metadata = file.metadata()
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("3", "3.0")
    assert metadata["modelspec.architecture"].endswith("/lora")
    assert metadata["ss_training_comment"] == "extracted from tuned, tuned from org.safetensors"


def test_text_encoders_and_convolutions_can_be_left_out(run, models, tmp_path):
    folder, changes = models
    target = tmp_path / "lora.safetensors"
    words = ("--dim", 3, "--clamp_quantile", 1, "--save_precision", "fp16", "--min_diff", 10, "--no_metadata")
    ended = extract(run, folder, target, *words)
    found = load_file(target)
    assert any("--min_diff leaves it out" in line for line in ended.lines)
    assert {tensor.dtype for tensor in found.values()} == {torch.float16}
    assert {
        name for name in changes if name.startswith("lora_unet") and "resnets" not in name and "sampler" not in name
    } == (updates(found).keys())
    torch.testing.assert_close(updates(found)[LINEAR], changes[LINEAR].double(), atol=1e-3, rtol=0)


def test_values_beyond_a_quantile_are_clamped(run, models, tmp_path):
    """Against NumPy: the halves with the root of the singular values, cut at that quantile of their absolute values."""
    folder, changes = models
    target = tmp_path / "lora.safetensors"
    extract(run, folder, target, "--dim", 2, "--clamp_quantile", 0.9)
    left, values, right = np.linalg.svd(changes[LINEAR].double().numpy())
    up, down = left[:, :2] * np.sqrt(values[:2]), np.sqrt(values[:2])[:, None] * right[:2]
    limit = np.quantile(np.abs(np.concatenate([up.ravel(), down.ravel()])), 0.9, method="inverted_cdf")
    clamped = np.clip(up, -limit, limit) @ np.clip(down, -limit, limit)
    np.testing.assert_allclose(updates(load_file(target))[LINEAR].numpy(), clamped, atol=1e-4)


def test_models_that_do_not_fit_are_said_in_one_line(run, models, tmp_path):
    folder, _ = models
    target, org = tmp_path / "lora.safetensors", folder / "org.safetensors"
    words = ("--save_to", target, "--model_org", org, "--model_tuned")
    assert "in all layers of a LoRA" in run(JOB, *words, org).error[0]
    assert run(JOB, *words, tmp_path / "none").error[0].startswith("--model_tuned") and not target.exists()
    assert run(JOB, *words, org, "--sdxl").error[0].startswith("--sdxl was given")
    family = load_family(ModelOptions(str(org)))
    family.unet.down_blocks[0].attentions[0].proj_in.weight.fill_(float("nan"))
    family.save(tmp_path / "nan.safetensors", format="safetensors", dtype=torch.float32, metadata={})
    assert "has NaN or infinite values" in run(JOB, *words, tmp_path / "nan.safetensors").error[0]
