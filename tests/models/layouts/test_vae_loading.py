"""`--vae`: another VAE, in every form in which they are handed around, takes the place of the model's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file

from library.cli.errors import UserError
from library.models.layouts import ldm_vae
from library.models.layouts.vae_loading import load_vae
from library.models.options import ModelOptions
from library.models.registry import load_family
from tests.tiny_models import TinyModel, to_stability_layout, write_folder

OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.fixture(scope="module")
def other(tiny_v1: TinyModel) -> TinyModel:
    """A model whose VAE differs from that of the others."""
    vae = AutoencoderKL.from_config(tiny_v1.vae.config)
    vae.load_state_dict({name: tensor + 0.01 for name, tensor in tiny_v1.vae.state_dict().items()})
    return TinyModel(False, tiny_v1.unet, vae.eval(), tiny_v1.text_encoder)


def _model_folder(model: TinyModel, folder: Path) -> Path:
    return write_folder(model, folder / "model")


def _vae_folder(model: TinyModel, folder: Path) -> Path:
    model.vae.save_pretrained(folder / "vae")
    return folder / "vae"


def _file_in_vae_folder(model: TinyModel, folder: Path) -> Path:
    return _vae_folder(model, folder) / "diffusion_pytorch_model.safetensors"


def _model_file(model: TinyModel, folder: Path) -> Path:
    save_file(to_stability_layout(model), folder / "model.safetensors")
    return folder / "model.safetensors"


def _vae_file(model: TinyModel, folder: Path) -> Path:
    tensors = to_stability_layout(model)
    vae = {key.removeprefix(ldm_vae.PREFIX): value for key, value in tensors.items() if key.startswith(ldm_vae.PREFIX)}
    torch.save({"state_dict": {**vae, "loss.logvar": torch.zeros(1)}}, folder / "vae.pt")
    return folder / "vae.pt"


def _file_without_config(model: TinyModel, folder: Path) -> Path:
    save_file(model.vae.state_dict(), folder / "vae-ft.safetensors")
    return folder / "vae-ft.safetensors"


def _old_file_without_config(model: TinyModel, folder: Path) -> Path:
    tensors = {}
    for name, tensor in model.vae.state_dict().items():
        for new, old in OLD_NAMES.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        tensors[name] = tensor
    torch.save(tensors, folder / "vae.bin")
    return folder / "vae.bin"


FORMS = [
    _model_folder, _vae_folder, _file_in_vae_folder, _model_file, _vae_file, _file_without_config,
    _old_file_without_config,
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_vae_is_read_in_every_form(other: TinyModel, tmp_path: Path, form: Callable[[TinyModel, Path], Path]) -> None:
    vae = load_vae(str(form(other, tmp_path)), 0.18215)
    expected = other.vae.state_dict()
    assert vae.state_dict().keys() == expected.keys()
    for name, tensor in vae.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert not vae.training and not any(parameter.requires_grad for parameter in vae.parameters())


@pytest.mark.parametrize("layout", ["Diffusers", "Stability"])
def test_the_named_file_is_loaded_as_the_config_beside_it_says(tiny_v1, other, tmp_path, layout) -> None:
    """Folders hold several VAEs beside one config.json; the run's metadata has the hash of the named one."""
    folder = _vae_folder(other, tmp_path)  # with a file of the standard name
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.3}))
    if layout == "Diffusers":
        save_file(tiny_v1.vae.state_dict(), folder / "my.safetensors")
    else:
        _vae_file(tiny_v1, folder).rename(folder / "my.ckpt")
    vae = load_vae(str(next(folder.glob("my.*"))), 0.18215)
    assert all(torch.equal(vae.state_dict()[name], tensor) for name, tensor in tiny_v1.vae.state_dict().items())
    assert vae.config.scaling_factor == 0.3


def test_it_takes_the_place_of_the_models_own(other: TinyModel, folder_v1: Path, tmp_path: Path) -> None:
    path = str(_vae_file(other, tmp_path))
    own, changed = (load_family(ModelOptions(str(folder_v1), vae=vae)) for vae in (None, path))
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = other.vae.decode(latents / 0.18215).sample
    torch.testing.assert_close(changed.decode_latents(latents), expected, rtol=0, atol=1e-5)
    assert changed.vae_fingerprint() != own.vae_fingerprint()


def test_what_is_no_vae_is_named(folder_v1: Path, tmp_path: Path) -> None:
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    (tmp_path / "empty").mkdir()
    for path, words in (("lora.safetensors", "holds no VAE"), ("empty", "holds neither vae/ nor config.json")):
        with pytest.raises(UserError, match=words):
            load_vae(str(tmp_path / path), 0.18215)


def test_a_vae_of_other_latents_does_not_fit(folder_v1: Path, tmp_path: Path) -> None:
    AutoencoderKL(block_out_channels=(32,), latent_channels=16).save_pretrained(tmp_path / "vae")
    with pytest.raises(UserError, match="the VAE's latents have 16"):
        load_family(ModelOptions(str(folder_v1), vae=str(tmp_path / "vae")))
