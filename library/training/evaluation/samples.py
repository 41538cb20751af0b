"""Sample images of the model being trained; generating them does not touch the run's random numbers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from library.cli.atomic_files import atomic_path
from library.cli.errors import first_line, plural
from library.data.randomness import derive_seed
from library.models.conditioning import Conditioning
from library.models.family import ModelFamily
from library.models.inpainting import Inpainting
from library.training.evaluation.contact_sheets import ProgressSheet, round_sheet
from library.training.evaluation.inpainting import inpainting_of
from library.training.evaluation.modes import evaluation_mode
from library.training.evaluation.prompts import SamplePrompt
from library.training.evaluation.sample_files import SampleFacts, SampleHistory, sample_path
from library.training.evaluation.samplers import advance, make_scheduler

logger = logging.getLogger(__name__)


@torch.no_grad()
def draw_sample(family: ModelFamily, prompt: SamplePrompt, *, sampler: str, seed: int) -> Image.Image:
    """Generates one image with classifier-free guidance ("Classifier-Free Diffusion Guidance", Ho, 2207.12598).

    All randomness comes from a generator of its own, seeded with `seed`.
    """
    device = next(family.unet.parameters()).device
    generator = torch.Generator("cpu").manual_seed(seed)
    shape = (1, family.latent_channels, prompt.height // family.vae_scale, prompt.width // family.vae_scale)
    scheduler = make_scheduler(sampler, family.process)
    # samplers that begin one timestep later have one less
    scheduler.set_timesteps(min(prompt.sample_steps, family.process.num_timesteps - 1), device=device)
    latents = torch.randn(shape, generator=generator).to(device) * scheduler.init_noise_sigma
    conditioning = family.encode_prompts([prompt.negative_prompt, prompt.prompt], weighted=True)
    inpainting = inpainting_of(family, prompt, seed)
    given = conditioning, None if inpainting is None else inpainting.repeated(2)
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(latents, timestep)
        guided = guided_prediction(family, scaled, timestep, given, prompt.scale)
        latents = advance(scheduler, guided, timestep, latents, generator)
    pixels = family.decode_latents(latents)[0].clamp(-1, 1)
    array = ((pixels + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array)


def guided_prediction(
    family: ModelFamily,
    latents: torch.Tensor,
    timestep: torch.Tensor,
    given: tuple[Conditioning, Inpainting | None],
    scale: float,
) -> torch.Tensor:
    """The prediction for latents (B, C, h, w) with guidance; `given`: of B images without the prompt, then with it."""
    timesteps = timestep.expand(2 * len(latents)).to(latents.device)
    conditioning, inpainting = given
    both = family.predict(torch.cat([latents, latents]), timesteps, conditioning, inpainting=inpainting)
    without, with_prompt = both.float().chunk(2)
    return without + scale * (with_prompt - without)


@dataclass(frozen=True)
class SampleSettings:
    """Where a run's sample images go, and what is the same for all of them.

    `writes`: this process does. `are_sharded`: the weights, so that all processes generate the images together.
    """

    folder: Path
    run: str
    sampler: str
    seed: int
    writes: bool = True
    are_sharded: bool = False


class Sampler:
    """Generates the sample images of a run, and their contact sheets, into `<output_dir>/sample`."""

    def __init__(
        self,
        family: ModelFamily,
        modules: Sequence[nn.Module],
        prompts: Callable[[], Sequence[SamplePrompt]],
        settings: SampleSettings,
        history: SampleHistory | None = None,
    ):
        """`prompts`: those of the round that begins. `history`: the images of a run that is resumed."""
        self._family = family
        self._modules = modules
        self._prompts = prompts
        self._settings = settings
        self.history = history or SampleHistory()
        self._progress = ProgressSheet(self.history)

    def draw(self, name: str, step: int) -> list[tuple[SampleFacts, Image.Image]]:
        """Generates and writes the image of every prompt; `name` is the step or epoch in the file names.

        Returns them for the trackers. Runs in eval mode (no dropout) and restores the mode afterwards.
        """
        stamp = time.strftime("%Y%m%d%H%M%S")
        drawn: list[tuple[SampleFacts, Image.Image]] = []
        prompts = self._prompts()
        logger.info("generating %s (%s)", plural(len(prompts), "sample image"), name)
        with evaluation_mode(self._modules):
            for prompt in prompts:
                facts = self._facts(prompt, name, step)
                image = self._draw_one(facts)
                if image is not None:
                    drawn.append((facts, image))
                    self._write(image, sample_path(self._settings.folder, facts, stamp), facts)
        if drawn:
            logger.info("%s (%s) in %s", plural(len(drawn), "sample image"), name, self._settings.folder)
            if self._settings.writes:
                self._write_sheets(drawn, stamp)
        return drawn

    def _facts(self, prompt: SamplePrompt, name: str, step: int) -> SampleFacts:
        settings = self._settings
        return SampleFacts(
            prompt=prompt,
            sampler=prompt.sampler or settings.sampler,
            seed=derive_seed("sample", settings.seed, prompt.index) if prompt.seed is None else prompt.seed,
            run=settings.run,
            round=name,
            step=step,
        )

    def _write_sheets(self, drawn: Sequence[tuple[SampleFacts, Image.Image]], stamp: str) -> None:
        folder = self._settings.folder
        self.history.add((facts, sample_path(folder, facts, stamp)) for facts, _ in drawn)
        try:
            self._write(self._progress.image(), folder / "progress.png")
            if len(drawn) > 1:
                name = f"{self._settings.run}_" if self._settings.run else ""
                sheet = round_sheet([image for _, image in drawn], [facts.prompt.prompt for facts, _ in drawn])
                self._write(sheet, folder / f"{name}{drawn[0][0].round}_sheet_{stamp}.png")
        except Exception as error:  # noqa: BLE001 - of Pillow, or out of memory
            logger.warning("no contact sheet of the sample images: %s", first_line(error))

    def _write(self, image: Image.Image, path: Path, facts: SampleFacts | None = None) -> None:
        """Logs an image that cannot be written: it is no reason to end a run."""
        if not self._settings.writes:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                image.save(temporary, format="PNG", pnginfo=None if facts is None else facts.png_info())
        except OSError as error:
            logger.error("%s cannot be written: %s", path, error.strerror or error)

    def _draw_one(self, facts: SampleFacts) -> Image.Image | None:
        """None, with a warning, where the image cannot be generated: a sample is no reason to end a run."""
        try:
            return draw_sample(self._family, facts.prompt, sampler=facts.sampler, seed=facts.seed)
        except Exception as error:  # noqa: BLE001 - of Diffusers, of a network, or out of memory
            if self._settings.are_sharded:  # the other processes would wait for this one
                raise
            logger.warning("no sample image of %r: %s", facts.prompt.prompt, first_line(error))
            return None
