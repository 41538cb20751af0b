"""Inpainting models, whose U-Nets take 9 channels: known from every file form, saved so that Diffusers opens them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import nn

from library.cli.errors import UserError
from library.models.convert import convert
from library.models.family import LoadSettings
from library.models.inpainting import Inpainting
from library.models.options import ModelOptions, PromptOptions
from library.models.registry import detect_model, load_family
from tests.tiny_inpainting_models import MAKERS, Example
from tests.tiny_models import make_tiny, to_stability_layout, write_folder

FIRST = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.fixture(scope="module", params=MAKERS)
def example(request, tmp_path_factory) -> Example:
    return MAKERS[request.param](tmp_path_factory.mktemp(request.param) / "base")


@pytest.fixture(scope="module")
def forms(example, tmp_path_factory) -> dict[str, Path]:
    """The folder; a single file without metadata, as published ones, and its pickle; a folder written by convert."""
    folder = tmp_path_factory.mktemp("forms")
    convert([str(example.folder), str(folder / "stated.safetensors")])
    tensors = load_file(folder / "stated.safetensors")
    save_file(tensors, folder / "model.safetensors")
    torch.save({"state_dict": tensors}, folder / "model.ckpt")
    convert([str(folder / "model.safetensors"), str(folder / "written")])
    return {
        "folder": example.folder,
        **{name: folder / name for name in ("model.safetensors", "model.ckpt", "written")},
    }


def assert_same_unet(found: nn.Module, example: Example) -> None:
    state, expected = found.state_dict(), example.unet.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(state[name].float(), tensor), name


def test_every_form_is_known_before_it_is_loaded_and_loaded_as_what_it_is(example, forms, caplog):
    """Its U-Net is given noisy latents, mask and masked latents, in the order of the pipelines."""
    caplog.set_level("INFO")
    generator = torch.Generator().manual_seed(5)
    latents, mask, masked = (torch.randn(2, count, 8, 8, generator=generator) for count in (4, 1, 4))
    for name, path in forms.items():
        options = ModelOptions(str(path))
        found = detect_model(options)
        assert found is not None and found.detected.is_inpainting and found.detected.unet_channels == (9, 4)
        assert not [each for each in found.check_options(options, PromptOptions()) if isinstance(each, UserError)]
        family = load_family(options)
        assert family.takes_masks and family.pipeline == example.pipeline.__name__, name
        assert "inpainting: its U-Net takes a mask" in caplog.text
        caplog.clear()
        assert_same_unet(family.unet, example)
        inputs: list[torch.Tensor] = []
        with family.unet.conv_in.register_forward_pre_hook(lambda module, args, into=inputs: into.append(args[0])):
            conditioning = family.encode_prompts(["a cat", "a dog"])
            family.predict(latents, torch.tensor([3, 700]), conditioning, inpainting=Inpainting(mask, masked))
            family.predict(latents, torch.tensor([3, 700]), conditioning)
        assert torch.equal(inputs[0], torch.cat([latents, mask, masked], dim=1))
        assert torch.equal(inputs[1][:, :4], latents) and bool((inputs[1][:, 4] == 1).all())
        scale = family.vae_scale
        grey = family.scale_latents(family.encode_images(torch.zeros(1, 3, 8 * scale, 8 * scale), [0]))
        assert torch.equal(inputs[1][:, 5:], grey.expand(2, -1, -1, -1))  # all is to be drawn


def test_diffusers_inpaint_pipelines_open_what_is_saved(example, forms):
    opened = DiffusionPipeline.from_pretrained(forms["written"], local_files_only=True)
    assert type(opened) is example.pipeline and opened.unet.config.in_channels == 9
    assert_same_unet(opened.unet, example)
    for name in ("model.safetensors", "model.ckpt"):
        pipeline = example.pipeline.from_single_file(
            str(forms[name]), config=str(forms["written"]), local_files_only=True
        )
        assert_same_unet(pipeline.unet, example)


def test_the_layout_of_a_single_file_is_the_published_one(example, forms):
    """Of the published inpainting models: as their text-to-image models, with a first layer of 9 channels."""
    tensors = load_file(forms["model.safetensors"])
    assert tensors[FIRST].shape == (32, 9, 3, 3)
    if hasattr(example.model, "is_v2"):
        plain = to_stability_layout(make_tiny(example.model.is_v2))
        front = "model.diffusion_model."
        assert {key for key in tensors if key.startswith(front)} == {key for key in plain if key.startswith(front)}


def test_a_report_says_that_a_model_is_for_inpainting(forms, capsys):
    for path in forms.values():
        convert([str(path), "--inspect"])
        assert "inpainting: takes 9 channels, gives 4" in capsys.readouterr().out


@pytest.mark.parametrize("channels", [5, 8, 7])
def test_other_variants_are_refused_by_their_channels(tmp_path, channels):
    """Depth (5), editing (8) and upscaling (7): by the header, and when loaded."""
    tensors = to_stability_layout(make_tiny(False))
    save_file({**tensors, FIRST: torch.zeros(32, channels, 3, 3)}, tmp_path / "some.safetensors")
    with pytest.raises(UserError, match=f"takes {channels} channels and gives 4") as caught:
        load_family(ModelOptions(str(tmp_path / "some.safetensors")))
    assert "inpainting" in caught.value.hint


def test_a_plain_model_is_widened_by_zeros_and_predicts_the_same(tmp_path):
    write_folder(make_tiny(False), tmp_path / "base")
    options = ModelOptions(str(tmp_path / "base"))
    plain, wide = load_family(options), load_family(options, settings=LoadSettings(widens_for_inpainting=True))
    assert not plain.takes_masks and wide.takes_masks
    assert torch.equal(wide.unet.conv_in.weight[:, :4], plain.unet.conv_in.weight)
    assert not wide.unet.conv_in.weight[:, 4:].any() and torch.equal(wide.unet.conv_in.bias, plain.unet.conv_in.bias)
    generator = torch.Generator().manual_seed(5)
    latents, mask, masked = (torch.randn(2, count, 8, 8, generator=generator) for count in (4, 1, 4))
    timesteps, conditioning = torch.tensor([3, 700]), plain.encode_prompts(["a cat", "a dog"])
    found = wide.predict(latents, timesteps, conditioning, inpainting=Inpainting(mask, masked))
    assert torch.equal(found, plain.predict(latents, timesteps, conditioning))
    wide.save(tmp_path / "wide", format="diffusers_safetensors", dtype=torch.float32, metadata={})
    assert detect_model(ModelOptions(str(tmp_path / "wide"))).detected.is_inpainting
