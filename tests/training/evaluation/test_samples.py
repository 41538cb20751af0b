"""A sample image that cannot be generated costs that image and a line, never the run."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from library.diffusion.discrete_diffusion import DiscreteDiffusion
from library.models.conditioning import TextStates
from library.training.evaluation.prompts import SamplePrompt
from library.training.evaluation.sample_files import SampleHistory, earlier_images
from library.training.evaluation.samples import Sampler, SampleSettings
from tests.diffusion.schedules import schedule


class GreyFamily:
    """A model of 1000 timesteps that predicts no noise, and fails at one prompt."""

    latent_channels, vae_scale = 4, 8
    process = DiscreteDiffusion(schedule().alphas_cumprod, "epsilon")

    def __init__(self) -> None:
        self.unet = torch.nn.Linear(1, 1)
        self.timesteps: list[int] = []

    def encode_prompts(self, prompts, *, weighted=None) -> TextStates:
        if "broken" in prompts:
            raise RuntimeError("expected more tokens\nand so on")
        return TextStates(torch.zeros(len(prompts), 1, 1))

    def predict(self, latents, timesteps, conditioning, inpainting=None):
        self.timesteps.append(int(timesteps[0]))
        return torch.zeros_like(latents)

    def decode_latents(self, latents):
        return torch.zeros(len(latents), 3, latents.shape[2] * 8, latents.shape[3] * 8)


SMALL = {"width": 64, "height": 64, "sample_steps": 2}


def sampler(family, tmp_path, prompts, history=None, **settings):
    settings = SampleSettings(folder=tmp_path, run="run", sampler="ddim", seed=1, **settings)
    return Sampler(family, [family.unet], prompts if callable(prompts) else lambda: prompts, settings, history)


def test_a_prompt_that_fails_is_named_and_the_others_are_drawn(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    prompts = [SamplePrompt("broken", **SMALL), SamplePrompt("a cat", **SMALL, index=1)]
    drawn = sampler(GreyFamily(), tmp_path, prompts).draw("e000001", 4)
    assert [facts.prompt.prompt for facts, _ in drawn] == ["a cat"]
    assert len(list(tmp_path.glob("run_e000001_01_*.png"))) == 1 and not list(tmp_path.glob("*_00_*"))
    assert "generating 2 sample images (e000001)" in caplog.text
    (warning,) = (record.message for record in caplog.records if record.levelno == logging.WARNING)
    assert warning == "no sample image of 'broken': expected more tokens"
    with pytest.raises(RuntimeError):  # where weights are sharded, the other processes would wait for ever
        sampler(GreyFamily(), tmp_path, prompts, are_sharded=True).draw("e000001", 4)


def test_an_image_says_how_it_was_made(tmp_path):
    prompt = SamplePrompt("a (fox:1.2), 狐", "bad, ugly", 64, 72, 3, 4.0, 7, "euler_a")
    sampler(GreyFamily(), tmp_path, [prompt]).draw("000012", 12)
    (path,) = tmp_path.glob("run_000012_00_*_7.png")
    with Image.open(path) as image:
        assert image.size == (64, 72)
        # the form in which image programs write and read it
        assert image.info["parameters"] == (
            "a (fox:1.2), 狐\nNegative prompt: bad, ugly\n"
            "Steps: 3, Sampler: euler_a, CFG scale: 4, Seed: 7, Size: 64x72, Model: run, Training step: 12"
        )
        values = json.loads(image.info["sample"])
    assert (values["step"], values["round"], values["seed"], values["prompt"]["prompt"]) == (
        12,
        "000012",
        7,
        prompt.prompt,
    )


def cells(path) -> list[list[bool]]:
    """Which cells of the sheet over time hold a (grey) sample: rows are prompts, columns rounds."""
    sheet = np.asarray(Image.open(path).convert("L"))
    columns = (sheet.shape[1] - 236) // 200
    rows = (sheet.shape[0] - 34) // 200
    centres = [
        [sheet[34 + 200 * row + 96, 236 + 200 * column + 96] for column in range(columns)] for row in range(rows)
    ]
    return [[int(value) == 128 for value in row] for row in centres]  # 0 in [-1, 1]


def test_each_prompt_over_time_while_its_file_is_edited_and_the_run_resumed(tmp_path):
    first, second, third = (SamplePrompt(text, **SMALL) for text in ("a cat", "a dog", "a fox"))
    prompts = [first, replace(second, index=1)]
    drawing = sampler(GreyFamily(), tmp_path, lambda: prompts)
    drawing.draw("000000", 0)
    drawing.draw("000002", 2)
    prompts = [third, replace(second, index=1)]
    drawing.draw("000004", 4)
    expected = [[True, True, False], [True, True, True], [False, False, True]]  # cat, dog, fox
    assert cells(tmp_path / "progress.png") == expected
    assert len(list(tmp_path.glob("run_000004_sheet_*.png"))) == 1
    # resumed at step 3: what was drawn later is drawn again, an image that is gone stays empty
    next(iter(tmp_path.glob("run_000002_00_*"))).unlink()
    (tmp_path / "other.png").write_bytes(b"no image")
    sampler(GreyFamily(), tmp_path, [third], earlier_images(tmp_path, "run", 3)).draw("000004", 4)
    assert cells(tmp_path / "progress.png") == [[True, False, False], [True, True, False], [False, False, True]]
    assert earlier_images(tmp_path, "another", 3).rounds == {}


def test_the_sheet_over_time_shows_ten_rounds_from_the_first_to_the_last():
    history = SampleHistory(rounds={step: f"{step:06d}" for step in range(0, 2000, 10)})
    steps = history.steps(10)
    assert len(steps) == 10 and (steps[0], steps[-1]) == (0, 1990)
    assert {later - earlier for earlier, later in zip(steps, steps[1:], strict=False)} <= {220, 230}
    assert history.steps(500) == list(range(0, 2000, 10))


def test_no_sheet_and_no_image_ends_a_run(tmp_path, caplog):
    (tmp_path / "taken").write_text("a file where the folder should be")
    drawn = sampler(GreyFamily(), tmp_path / "taken", [SamplePrompt("a cat", **SMALL)]).draw("000001", 1)
    assert len(drawn) == 1 and "cannot be written" in caplog.text


@pytest.mark.parametrize("name", ["ddim", "euler_a"])
def test_as_many_steps_as_a_prompt_can_ask_for_stay_within_the_schedule(name, tmp_path):
    family = GreyFamily()
    prompt = SamplePrompt("a cat", width=64, height=64, sample_steps=1000, sampler=name)
    assert len(sampler(family, tmp_path, [prompt]).draw("000000", 0)) == 1
    assert min(family.timesteps) >= 0 and max(family.timesteps) == 999
