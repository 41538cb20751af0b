"""If these fail, samples of an inpainting model show another hole than asked for, or a mistake ends the run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from library.cli.errors import UserError
from library.models.options import ModelOptions
from library.models.registry import load_family
from library.training.evaluation.prompts import SamplePrompt, parse_prompt_line, parse_prompt_table
from library.training.evaluation.samples import draw_sample
from tests.tiny_inpainting_models import MAKERS

SIZE = 64


@pytest.fixture
def files(tmp_path):
    """An image, and a mask of levels on both sides of one half."""
    rng = np.random.default_rng(2)
    Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(tmp_path / "image.png")
    Image.fromarray(rng.choice(np.array([0, 127, 128, 255], np.uint8), (SIZE, SIZE))).save(tmp_path / "mask.png")
    return tmp_path


class Stop(Exception):
    """At the first step."""


def first_input(unet, draw) -> torch.Tensor:
    """What the U-Net is given in the first step of `draw`."""
    inputs: list[torch.Tensor] = []

    def stop(module, args):
        inputs.append(args[0].detach())
        raise Stop

    with unet.conv_in.register_forward_pre_hook(stop), pytest.raises(Stop):
        draw()
    return inputs[0]


@pytest.mark.parametrize("kind", MAKERS)
def test_the_models_input_is_that_of_diffusers_inpaint_pipelines(kind, files):
    """To 1e-6; the pipeline is handed our masked latents, which are those of the image with grey in the hole."""
    example = MAKERS[kind](files / "base")
    family = load_family(ModelOptions(str(example.folder)))
    prompt = SamplePrompt(
        "a cat", width=SIZE, height=SIZE, sample_steps=2, image=str(files / "image.png"), mask=str(files / "mask.png")
    )
    found = first_input(family.unet, lambda: draw_sample(family, prompt, sampler="ddim", seed=3))
    side = SIZE // family.vae_scale
    noise = torch.randn((1, 4, side, side), generator=torch.Generator().manual_seed(3))
    family.save(files / "saved", format="diffusers_safetensors", dtype=torch.float32, metadata={})
    pipe = example.pipeline.from_pretrained(files / "saved", torch_dtype=torch.float32, local_files_only=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    image, mask = Image.open(files / "image.png"), Image.open(files / "mask.png")
    expected = first_input(
        pipe.unet,
        lambda: pipe(
            prompt="a cat", image=image, mask_image=mask, masked_image_latents=found[:1, 5:], latents=noise,
            height=SIZE, width=SIZE, strength=1.0, num_inference_steps=2,
        ),
    )  # fmt: skip
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    grey = torch.from_numpy(np.where(np.asarray(mask) >= 128, 0, np.asarray(image).transpose(2, 0, 1) / 127.5 - 1))
    posterior = pipe.vae.encode(grey[None].float()).latent_dist
    deviations = (found[:1, 5:] / pipe.vae.config.scaling_factor - posterior.mean) / posterior.std
    assert 0.9 < deviations.std() < 1.1 and deviations.mean().abs() < 0.1  # a sample of its distribution


def test_a_prompt_without_a_mask_has_one_by_its_seed_and_one_without_an_image_draws_all(files):
    family = load_family(ModelOptions(str(MAKERS["sd1"](files / "base").folder)))
    prompt = SamplePrompt("a cat", width=SIZE, height=SIZE, sample_steps=2, image=str(files / "image.png"))

    def mask(prompt: SamplePrompt, seed: int) -> torch.Tensor:
        return first_input(family.unet, lambda: draw_sample(family, prompt, sampler="ddim", seed=seed))[0, 4]

    masks = [mask(prompt, seed) for seed in (1, 2, 1)]
    assert all(set(each.unique().tolist()) == {0.0, 1.0} for each in masks)
    assert torch.equal(masks[0], masks[2]) and not torch.equal(masks[0], masks[1])
    assert (mask(SamplePrompt("a cat", width=SIZE, height=SIZE, sample_steps=2), 1) == 1).all()


def test_prompts_name_images_and_masks(files, caplog):
    """By --i or --img, and --im; of the image's size where none is given."""
    image, mask = files / "image.png", files / "mask.png"
    expected = SamplePrompt("a cat", width=SIZE, height=SIZE, image=str(image), mask=str(mask))
    assert parse_prompt_line(f"a cat --i {image} --im {mask}", "line 1") == expected
    assert parse_prompt_line(f"a cat --img {image} --im {mask}", "line 1") == expected
    assert parse_prompt_table({"prompt": "a cat", "image": str(image), "mask": str(mask)}, "prompt 1") == expected
    assert not caplog.messages
    Image.new("L", (32, 16)).save(files / "small.png")
    parse_prompt_line(f"a cat --i {image} --im {files / 'small.png'}", "line 1")
    assert caplog.messages == ["line 1: the mask is 32x16, the sample 64x64: it is scaled"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--i none.png", "line 1: image none.png: there is no such file"),
        ("--i {image} --im none.png", "line 1: mask none.png: there is no such file"),
        ("--im {image}", "line 1: the mask {image} is of no image"),
        ("--i {text}", "line 1: image {text} cannot be read"),
    ],
)
def test_files_that_are_not_there_are_said_with_their_line(files, options, message):
    names = {"image": files / "image.png", "text": files / "text.png"}
    names["text"].write_text("no image")
    with pytest.raises(UserError) as caught:
        parse_prompt_line("a cat " + options.format(**names), "line 1")
    assert caught.value.message.startswith(message.format(**names)) and caught.value.hint
