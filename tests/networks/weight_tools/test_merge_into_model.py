"""If this fails, a model with a merged LoRA draws other images than the model with the LoRA beside it."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from library.models.options import ModelOptions
from library.models.registry import load_family
from networks import loha, lokr, lora, oft
from networks.merge_lora import JOB
from tests.tiny_models import make_tiny, to_stability_layout, write_folder

ADAPTERS = {
    "lora": (lora, {"conv_dim": "2"}),
    "dora": (lora, {"use_dora": "True"}),
    "loha": (loha, {}),
    "lokr": (lokr, {"factor": "4"}),
    "oft": (oft, {}),
}


def family_of(path):
    return load_family(ModelOptions(str(path)))


def prediction(family) -> torch.Tensor:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return family.predict(latents, torch.tensor([300]), family.encode_prompts(["a dog on a chair"]))


@pytest.fixture(scope="module", params=[False, True], ids=["sd1", "sd2"])
def model(request, tmp_path_factory):
    """A folder and a single file of one model, and an adapter of each kind for it."""
    folder = tmp_path_factory.mktemp("model")
    tiny = make_tiny(request.param)
    write_folder(tiny, folder / "model")
    save_file(to_stability_layout(tiny), folder / "model.safetensors", {"modelspec.author": "somebody"})
    torch.manual_seed(3)
    family = family_of(folder / "model")
    for name, (module, args) in ADAPTERS.items():
        network = module.create_network(1.0, 4, 2, None, family.text_encoders[0], family.unet, **args)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        network.save_weights(folder / f"{name}.safetensors", None, {"ss_base_model_version": "sd_v1"})
    return folder


def beside(folder, name: str, ratio: float):
    """What the model predicts alone, and with the adapter beside it."""
    family = family_of(folder / "model")
    alone = prediction(family)
    encoder, unet = family.text_encoders[0], family.unet
    path = folder / f"{name}.safetensors"
    create = ADAPTERS[name][0].create_network_from_weights
    network, _ = create(ratio, path, None, encoder, unet, for_inference=True)
    network.apply_to(encoder, unet)
    return alone, prediction(family)


@pytest.mark.parametrize(
    ("source", "name"),
    [("model", "merged"), ("model", "merged.ckpt"), ("model.safetensors", "merged.safetensors")],
)
def test_the_merged_model_is_base_and_lora(run, model, tmp_path, source, name):
    target, lora = tmp_path / name, model / "lora.safetensors"
    ones, halves = ",".join(["1"] * 26), ",".join(["0.5"] * 26)
    words = ("--models", lora, lora, "--ratios", "1.0", "-0.6", "--lbws", ones, halves, "--save_to", target)
    ended = run(JOB, "--sd_model", model / source, *words)
    assert ended.status == 0, ended.error
    alone, adapted = beside(model, "lora", 0.7)
    assert (adapted - alone).abs().max() > 0.05
    torch.testing.assert_close(prediction(family_of(target)), adapted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["dora", "loha", "lokr", "oft"])
def test_other_adapters_are_merged_too(run, model, tmp_path, name):
    target = tmp_path / "merged"
    words = ("--models", model / f"{name}.safetensors", "--ratios", 0.6, "--save_to", target)
    ended = run(JOB, "--sd_model", model / "model.safetensors", *words)
    assert ended.status == 0, ended.error
    alone, adapted = beside(model, name, 0.6)
    assert (adapted - alone).abs().max() > 0.02
    torch.testing.assert_close(prediction(family_of(target)), adapted, atol=1e-5, rtol=0)


def test_the_metadata_is_carried_on(run, model, tmp_path):
    target = tmp_path / "merged.safetensors"
    words = ("--models", model / "lora.safetensors", "--save_to", target, "--precision", "fp16")
    assert run(JOB, "--sd_model", model / "model.safetensors", *words).status == 0
    with safe_open(target, "pt") as file:
        metadata = file.metadata()
    assert {tensor.dtype for tensor in load_file(target).values()} == {torch.float16}
    assert metadata["modelspec.author"] == "somebody" and metadata["modelspec.title"] == "merged"
    assert metadata["modelspec.merged_from"] == "model, lora x 1"


def test_layers_that_the_model_lacks_are_said(run, model, lora, tmp_path):
    """Before anything is written."""
    target = tmp_path / "merged.safetensors"
    ended = run(JOB, "--sd_model", model / "model", "--models", lora("a.safetensors"), "--save_to", target)
    assert ended.status == 2 and "a.safetensors" in ended.error[0] and not target.exists()
    target = tmp_path / "full"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    ended = run(JOB, "--sd_model", model / "model", "--models", model / "lora.safetensors", "--save_to", target)
    assert "is not empty and not a model" in ended.error[0]
