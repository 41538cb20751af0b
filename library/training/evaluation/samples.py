"""Sample images of the model being trained; generating them does not touch the run's random numbers."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from library.cli.atomic_files import atomic_path
from library.cli.errors import first_line
from library.data.randomness import derive_seed
from library.models.family import Conditioning, ModelFamily
from library.training.evaluation.modes import evaluation_mode
from library.training.evaluation.prompts import SamplePrompt
from library.training.evaluation.samplers import SAMPLERS, Scheduler

logger = logging.getLogger(__name__)


@torch.no_grad()
def draw_sample(family: ModelFamily, prompt: SamplePrompt, *, sampler: str, seed: int) -> Image.Image:
    """Generates one image with classifier-free guidance ("Classifier-Free Diffusion Guidance", Ho, 2207.12598).

    All randomness comes from a generator of its own, seeded with `seed`.
    """
    device = next(family.unet.parameters()).device
    generator = torch.Generator("cpu").manual_seed(seed)
    shape = (1, family.latent_channels, prompt.height // family.vae_scale, prompt.width // family.vae_scale)
    scheduler = SAMPLERS[sampler](family)
    # samplers that begin one timestep later have one less
    scheduler.set_timesteps(min(prompt.sample_steps, len(family.alphas_cumprod()) - 1), device=device)
    latents = torch.randn(shape, generator=generator).to(device) * scheduler.init_noise_sigma
    conditioning = family.encode_prompts([prompt.negative_prompt, prompt.prompt], weighted=True)
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(latents, timestep)
        guided = _guided(family, scaled, timestep, conditioning, prompt.scale)
        latents = _advance(scheduler, guided, timestep, latents, generator)
    pixels = family.decode_latents(latents)[0].clamp(-1, 1)
    array = ((pixels + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array)


def _guided(
    family: ModelFamily, latents: torch.Tensor, timestep: torch.Tensor, conditioning: Conditioning, scale: float
) -> torch.Tensor:
    timesteps = timestep.expand(2).to(latents.device)
    without, with_prompt = family.predict(torch.cat([latents, latents]), timesteps, conditioning).float().chunk(2)
    return without + scale * (with_prompt - without)


def _advance(
    scheduler: Scheduler,
    prediction: torch.Tensor,
    timestep: torch.Tensor,
    latents: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    return scheduler.step(prediction, timestep, latents, generator=generator).prev_sample


class Sampler:
    """Generates the sample images of a run into `<output_dir>/sample`."""

    def __init__(
        self,
        family: ModelFamily,
        modules: Sequence[nn.Module],
        prompts: Sequence[SamplePrompt],
        *,
        folder: Path,
        name: str | None,
        sampler: str,
        seed: int,
        writes: bool = True,
        are_sharded: bool = False,
    ):
        """`are_sharded`: the weights, so that all processes generate the images together. `writes`: this one does."""
        self._family = family
        self._modules = modules
        self._prompts = prompts
        self._folder = folder
        self._name = name
        self._sampler = sampler
        self._seed = seed
        self._writes = writes
        self._are_sharded = are_sharded

    def draw(self, when: str) -> list[tuple[str, Image.Image]]:
        """Generates and writes the image of every prompt; `when` is the step or epoch in the file names.

        Returns (name, image) for the trackers. Runs in eval mode (no dropout) and restores the mode afterwards.
        """
        stamp = time.strftime("%Y%m%d%H%M%S")
        drawn: list[tuple[str, Image.Image]] = []
        count = len(self._prompts)
        logger.info("generating %d sample image%s (%s)", count, "" if count == 1 else "s", when)
        with evaluation_mode(self._modules):
            for index, prompt in enumerate(self._prompts):
                image = self._draw_one(index, prompt)
                if image is None:
                    continue
                seed = "" if prompt.seed is None else f"_{prompt.seed}"
                name = "" if self._name is None else f"{self._name}_"
                path = self._folder / f"{name}{when}_{index:02d}_{stamp}{seed}.png"
                if self._writes:
                    self._write(image, path)
                drawn.append((f"sample/{index:02d}", image))
        if drawn:
            logger.info("%d sample image%s (%s) in %s", len(drawn), "" if len(drawn) == 1 else "s", when, self._folder)
        return drawn

    def _write(self, image: Image.Image, path: Path) -> None:
        """Logs an image that cannot be written: it is no reason to end a run."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                image.save(temporary, format="PNG")
        except OSError as error:
            logger.error("%s cannot be written: %s", path, error.strerror or error)

    def _draw_one(self, index: int, prompt: SamplePrompt) -> Image.Image | None:
        """None, with a warning, where the image cannot be generated: a sample is no reason to end a run."""
        seed = derive_seed("sample", self._seed, index) if prompt.seed is None else prompt.seed
        try:
            return draw_sample(self._family, prompt, sampler=prompt.sampler or self._sampler, seed=seed)
        except Exception as error:  # noqa: BLE001 - of Diffusers, of a network, or out of memory
            if self._are_sharded:  # the other processes would wait for this one
                raise
            logger.warning("no sample image of %r: %s", prompt.prompt, first_line(error))
            return None
