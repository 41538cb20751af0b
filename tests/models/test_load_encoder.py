"""If this fails, latents are prepared by another VAE than training has, or with a model that has none."""

import shutil

import pytest
import torch
from safetensors.torch import save_file

from library.cli.errors import UserError
from library.models.family import LoadSettings
from library.models.options import ModelOptions
from library.models.registry import load_encoder, load_family

PIXELS = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1


def load(path, **settings):
    return load_encoder(str(path), "MODEL", LoadSettings(**settings))


def test_the_encoder_of_every_form_is_that_of_the_whole_model(tiny_v1, folder_v1, file_v1, stability_layout, tmp_path):
    family = load_family(ModelOptions(str(folder_v1)))
    tensors = stability_layout(tiny_v1)
    torch.save({"state_dict": {f"model.{key}": value for key, value in tensors.items()}}, tmp_path / "front.ckpt")
    only_vae = shutil.copytree(folder_v1 / "vae", tmp_path / "vae")
    without_others = shutil.copytree(folder_v1, tmp_path / "parts")
    for part in ("unet", "text_encoder"):  # they are not read
        for file in (without_others / part).glob("*.safetensors"):
            file.write_bytes(b"")
    expected = family.encode_images(PIXELS, [3, 4])
    for path in (folder_v1, file_v1, tmp_path / "front.ckpt", only_vae, without_others):
        encoder = load(path)
        assert torch.equal(encoder.encode_images(PIXELS, [3, 4]), expected)
        assert encoder.vae_fingerprint() == family.vae_fingerprint()
        assert (encoder.latent_channels, encoder.vae_scale) == (family.latent_channels, family.vae_scale)


def test_the_precision_is_that_of_the_settings(folder_v1):
    exact, rounded = load(folder_v1), load(folder_v1, dtypes={"vae": torch.bfloat16})
    assert rounded.vae_fingerprint() != exact.vae_fingerprint()
    difference = (rounded.encode_images(PIXELS, [3, 4]) - exact.encode_images(PIXELS, [3, 4])).abs().max()
    assert 0 < difference < 0.2


def test_what_has_no_vae_of_this_kind_is_named(tmp_path):
    save_file(
        {"model.diffusion_model.joint_blocks.0.x": torch.zeros(1), "first_stage_model.x": torch.zeros(1)},
        tmp_path / "3.safetensors",
    )
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    (tmp_path / "empty").mkdir()
    for name, said in (
        ("3.safetensors", "is a Stable Diffusion 3 model"),
        ("lora.safetensors", "holds no VAE"),
        ("empty", "holds neither vae/ nor config.json"),
        ("nowhere.safetensors", "there is no such file or folder"),
    ):
        with pytest.raises(UserError) as caught:
            load(tmp_path / name)
        assert caught.value.message.startswith("MODEL ") and said in caught.value.message and caught.value.hint
