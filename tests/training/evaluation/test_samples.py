"""A sample image that cannot be generated costs that image and a line, never the run."""

from __future__ import annotations

import logging

import pytest
import torch

from library.models.family import Conditioning
from library.training.evaluation.prompts import SamplePrompt
from library.training.evaluation.samples import Sampler
from tests.diffusion.schedules import schedule


class GreyFamily:
    """A model of 1000 timesteps that predicts no noise, and fails at one prompt."""

    latent_channels, vae_scale, prediction_type = 4, 8, "epsilon"

    def __init__(self) -> None:
        self.unet = torch.nn.Linear(1, 1)
        self.timesteps: list[int] = []

    def alphas_cumprod(self) -> torch.Tensor:
        return schedule().alphas_cumprod

    def encode_prompts(self, prompts, *, weighted=None) -> Conditioning:
        if "broken" in prompts:
            raise RuntimeError("expected more tokens\nand so on")
        return Conditioning(torch.zeros(len(prompts), 1, 1))

    def predict(self, latents, timesteps, conditioning):
        self.timesteps.append(int(timesteps[0]))
        return torch.zeros_like(latents)

    def decode_latents(self, latents):
        return torch.zeros(len(latents), 3, latents.shape[2] * 8, latents.shape[3] * 8)


def sampler(family, tmp_path, prompts, **options):
    return Sampler(family, [family.unet], prompts, folder=tmp_path, name=None, sampler="ddim", seed=1, **options)


def test_a_prompt_that_fails_is_named_and_the_others_are_drawn(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    small = {"width": 64, "height": 64, "sample_steps": 2}
    prompts = [SamplePrompt("broken", **small), SamplePrompt("a cat", **small)]
    drawn = sampler(GreyFamily(), tmp_path, prompts).draw("e000001")
    assert [name for name, _ in drawn] == ["sample/01"] and len(list(tmp_path.glob("*.png"))) == 1
    assert "generating 2 sample images (e000001)" in caplog.text
    (warning,) = (record.message for record in caplog.records if record.levelno == logging.WARNING)
    assert warning == "no sample image of 'broken': expected more tokens"
    with pytest.raises(RuntimeError):  # where weights are sharded, the other processes would wait for ever
        sampler(GreyFamily(), tmp_path, prompts, are_sharded=True).draw("e000001")


@pytest.mark.parametrize("name", ["ddim", "euler_a"])
def test_as_many_steps_as_a_prompt_can_ask_for_stay_within_the_schedule(name, tmp_path):
    family = GreyFamily()
    prompt = SamplePrompt("a cat", width=64, height=64, sample_steps=1000, sampler=name)
    assert len(sampler(family, tmp_path, [prompt]).draw("x")) == 1
    assert min(family.timesteps) >= 0 and max(family.timesteps) == 999
