"""From a drawn entry to its loss: denoise the target, and draw its prediction to one of the model without the network.

"Erasing Concepts from Diffusion Models" (Gandikota et al., 2303.07345), "Concept Sliders" (2311.12092).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from accelerate import Accelerator

from library.cli.parser import Options
from library.data.randomness import derive_seed
from library.diffusion.loss import weighted_loss
from library.diffusion.noise import make_noise
from library.diffusion.options import LossOptions, NoiseOptions
from library.methods.concepts.data import ConceptBatch
from library.methods.concepts.entries import ConceptEntry
from library.methods.concepts.method import OFF, USUAL, ConceptTraining
from library.methods.concepts.options import ConceptOptions
from library.models.conditioning import Conditioning
from library.models.family import ModelFamily
from library.models.options import MemoryOptions, PromptOptions
from library.training.evaluation.modes import evaluation_mode
from library.training.evaluation.samplers import advance, make_scheduler
from library.training.evaluation.samples import guided_prediction

Outputs = Mapping[ConceptEntry, Mapping[str, dict[str, np.ndarray]]]  # of the text encoders, by entry and prompt


def make_objective(
    options: Options,
    entries: Sequence[ConceptEntry],
    method: ConceptTraining,
    family: ModelFamily,
    accelerator: Accelerator,
) -> ConceptObjective:
    """Encodes the prompts, after which the text encoders and the VAE are needed for sample images alone."""
    weighted = options[PromptOptions].weighted_captions
    outputs: dict[ConceptEntry, dict[str, dict[str, np.ndarray]]] = {}
    for entry in entries:
        with torch.no_grad(), accelerator.autocast():
            encoded = family.encode_prompts(entry.prompts, weighted=weighted)
        outputs[entry] = {prompt: encoded.arrays(index) for index, prompt in enumerate(entry.prompts)}
    if not options[MemoryOptions].highvram and accelerator.device.type != "cpu":
        family.offload_vae()
        family.offload_text_encoders()
    return ConceptObjective(options, outputs, method, family, accelerator)


class ConceptObjective:
    """What training makes small; implements `Objective`."""

    def __init__(
        self,
        options: Options,
        outputs: Outputs,
        method: ConceptTraining,
        family: ModelFamily,
        accelerator: Accelerator,
    ):
        concepts = options[ConceptOptions]
        self._outputs = outputs
        self._method = method
        self._family = family
        self._accelerator = accelerator
        self._noise_options, self._loss_options = options[NoiseOptions], options[LossOptions]
        self._guidance_scale, self._num_steps = concepts.leco_denoise_guidance_scale, concepts.max_denoising_steps
        self._process = family.process.to(accelerator.device)
        self._scheduler = make_scheduler("ddim", family.process, spacing="trailing")
        self._scheduler.set_timesteps(family.process.num_timesteps)
        self._descending = self._scheduler.timesteps.to(accelerator.device)  # all timesteps, the noisiest first
        self._scheduler.set_timesteps(
            self._num_steps
        )  # on the CPU, so that its arithmetic does not wait for the device
        self._on_device = self._scheduler.timesteps.to(accelerator.device)

    def training_loss(self, batch: ConceptBatch, seed: int) -> torch.Tensor:
        """The loss of one micro-batch, a scalar. Its randomness is a function of (seed, epoch, index in the plan).

        The multiplier stays that of the entry until `after_backward`.
        """
        key = (seed, batch.micro_batch.epoch, batch.micro_batch.index)
        device, entry = self._accelerator.device, batch.entry
        generator = torch.Generator(device).manual_seed(derive_seed("noise", *key))
        network_seed = derive_seed("network", *key)
        torch.manual_seed(network_seed)  # as in training on images
        random.seed(network_seed)
        width, height = (side // self._family.vae_scale for side in batch.size)
        nothing = torch.zeros(entry.batch_size, self._family.latent_channels, height, width, device=device)
        noise = make_noise(nothing, self._noise_options, generator).target
        index = self._process.num_timesteps * batch.num_denoised // self._num_steps
        timesteps = self._descending[index].expand(entry.batch_size)
        with torch.no_grad(), evaluation_mode(self._method.trainable_modules()):
            latents = self._denoised(noise, batch, generator)
            target = self._target(latents, timesteps, entry)
        self._method.set_multiplier(entry.multiplier)
        with self._accelerator.autocast():
            prediction = self._family.predict(latents, timesteps, self._conditioning(entry, entry.target))
        return weighted_loss(
            prediction,
            target,
            loss_weights=torch.full((entry.batch_size,), entry.weight, device=device),
            timesteps=timesteps,
            process=self._process,
            options=self._loss_options,
        )

    def after_backward(self) -> None:
        """Samples show the network at multiplier 1."""
        self._method.set_multiplier(USUAL)

    def _denoised(self, noise: torch.Tensor, batch: ConceptBatch, generator: torch.Generator) -> torch.Tensor:
        """Latents (B, C, h, w): `num_denoised` timesteps of the target, with the network."""
        entry = batch.entry
        self._method.set_multiplier(entry.multiplier)
        given = self._conditioning(entry, entry.unconditional, entry.target), None  # no inpainting
        latents = noise * self._scheduler.init_noise_sigma
        for index in range(batch.num_denoised):
            timestep = self._scheduler.timesteps[index]
            scaled = self._scheduler.scale_model_input(latents, timestep)
            with self._accelerator.autocast():
                guided = guided_prediction(self._family, scaled, self._on_device[index], given, self._guidance_scale)
            latents = advance(self._scheduler, guided, timestep, latents, generator)
        return latents

    def _target(self, latents: torch.Tensor, timesteps: torch.Tensor, entry: ConceptEntry) -> torch.Tensor:
        """neutral -/+ guidance_scale (positive - unconditional), (B, C, h, w), of the model alone."""
        self._method.set_multiplier(OFF)
        prompts = list(dict.fromkeys((entry.positive, entry.neutral, entry.unconditional)))
        repeated = [latents] * len(prompts)
        with self._accelerator.autocast():
            predictions = self._family.predict(
                torch.cat(repeated), timesteps.repeat(len(prompts)), self._conditioning(entry, *prompts)
            )
        of = dict(zip(prompts, predictions.float().chunk(len(prompts)), strict=True))
        return of[entry.neutral] + entry.direction * (of[entry.positive] - of[entry.unconditional])

    def _conditioning(self, entry: ConceptEntry, *prompts: str) -> Conditioning:
        """That of each prompt, for all images of the batch in turn."""
        outputs = self._outputs[entry]
        repeated = [outputs[prompt] for prompt in prompts for _ in range(entry.batch_size)]
        return self._family.conditioning.from_arrays(repeated, self._accelerator.device)
