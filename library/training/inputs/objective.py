"""From a batch to its loss: noise, noisy latents, prediction, weighted error."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from library.cli.parser import Options
from library.data.batches.loader import BatchDataset, BatchLoader
from library.data.batches.plan import TrainingData
from library.data.config.options import CachingOptions, DatasetOptions, InpaintingOptions
from library.data.images.inpaint_masks import MaskShares
from library.data.randomness import derive_seed
from library.data.records import Batch, StepCounter, framing_of
from library.diffusion.loss import weighted_loss
from library.diffusion.noise import Noise, make_noise
from library.diffusion.options import LossOptions, NoiseOptions, timestep_range
from library.models.conditioning import Conditioning
from library.models.device_copies import to_device
from library.models.family import ModelFamily
from library.models.inpainting import Inpainting
from library.models.options import MemoryOptions
from library.training.inputs.latents import LatentProvider
from library.training.inputs.text_outputs import TextSource
from library.training.method import TrainingMethod

LoaderOf = Callable[[TrainingData, int, StepCounter], BatchLoader]  # data, seed of its items, counter of its steps


@dataclass(frozen=True)
class ImageInputs:
    """The way from a batch of images to its loss, and what makes the loader of some images."""

    objective: Objective
    loader_of: LoaderOf


def make_inputs(
    options: Options, data: TrainingData, method: TrainingMethod, family: ModelFamily, accelerator: Accelerator
) -> ImageInputs:
    """Fills the caches of latents and text encoder outputs, and makes the inputs of training and validation."""
    caching, loss, skips_unreadable = (
        options[CachingOptions],
        options[LossOptions],
        options[DatasetOptions].skip_bad_images,
    )
    latents = LatentProvider(family, caching, accelerator, skips_unreadable)
    unreadable = latents.fill_caches(data)
    is_vae_idle = caching.caches_latents and not latents.encodes_in_steps(data)
    if is_vae_idle and not options[MemoryOptions].highvram and accelerator.device.type != "cpu":
        family.offload_vae()
    texts = TextSource(family, caching, accelerator, method.trains_text_encoders)
    texts.fill_cache(data)
    if caching.caches_text_encoder_outputs and not options[MemoryOptions].highvram and accelerator.device.type != "cpu":
        family.offload_text_encoders()

    def loader_of(data: TrainingData, seed: int, counter: StepCounter) -> BatchLoader:
        dataset = BatchDataset(
            data,
            seed=seed,
            clock=counter,
            latent_source=latents.kind,
            fingerprint=latents.fingerprint if caching.cache_latents_to_disk else "",
            prior_loss_weight=loss.prior_loss_weight,
            skip_bad_images=skips_unreadable,
            unreadable=unreadable,
            inpainting=MaskShares(options[InpaintingOptions].mask_shares) if family.takes_masks else None,
        )
        return BatchLoader(dataset, caching.max_data_loader_n_workers, caching.persistent_data_loader_workers)

    objective = Objective(family, latents, texts, accelerator, options[NoiseOptions], loss)
    return ImageInputs(objective, loader_of)


@dataclass(frozen=True)
class _Given:
    """What the denoiser is given beside noisy latents."""

    conditioning: Conditioning
    inpainting: Inpainting | None


class Objective:
    """What training on images makes small, on one model family with its latents and texts."""

    def __init__(
        self,
        family: ModelFamily,
        latents: LatentProvider,
        texts: TextSource,
        accelerator: Accelerator,
        noise_options: NoiseOptions,
        loss_options: LossOptions,
    ):
        self._family = family
        self._latents = latents
        self._texts = texts
        self._accelerator = accelerator
        self._noise_options = noise_options
        self._loss_options = loss_options
        self._process = family.process.to(accelerator.device)

    @property
    def num_timesteps(self) -> int:
        return self._process.num_timesteps

    @property
    def timesteps(self) -> range:
        """Those that are trained."""
        return timestep_range(self._noise_options, self.num_timesteps)

    def training_loss(self, batch: Batch, seed: int) -> torch.Tensor:
        """The loss of one micro-batch, a scalar. Its randomness is a function of (seed, epoch, index in the plan)."""
        key = (seed, batch.micro_batch.epoch, batch.micro_batch.index)
        generator = torch.Generator(self._accelerator.device).manual_seed(derive_seed("noise", *key))
        network_seed = derive_seed("network", *key)
        torch.manual_seed(network_seed)  # dropout draws from the global generators,
        random.seed(network_seed)  # and networks of other packages from Python's as well
        latents = self._latents.latents_of(batch)
        # before the noise: they stay the same whatever the noise is made of
        timesteps = self._process.draw_timesteps(len(latents), self.timesteps, generator)
        noise = make_noise(latents, self._noise_options, generator)
        return self._loss(batch, latents, self._given_of(batch), noise, timesteps)

    def after_backward(self) -> None:
        """Nothing to do."""

    @torch.no_grad()
    def losses_at(self, batch: Batch, timesteps: Sequence[int]) -> list[torch.Tensor]:
        """The loss of a held-out micro-batch at each timestep, scalars, with the same noise each time.

        Its images and captions are encoded once for all of them.
        """
        latents, given = self._latents.latents_of(batch), self._given_of(batch)
        losses = []
        for timestep in timesteps:
            key = ("validation noise", batch.micro_batch.index, timestep)
            generator = torch.Generator(self._accelerator.device).manual_seed(derive_seed(*key))
            noise = make_noise(latents, self._noise_options, generator)
            everywhere = torch.full((len(latents),), timestep, device=latents.device)
            losses.append(self._loss(batch, latents, given, noise, everywhere))
        return losses

    def _given_of(self, batch: Batch) -> _Given:
        with self._accelerator.autocast():
            conditioning = self._texts.conditioning_of(batch)
        return _Given(conditioning, self._latents.inpainting_of(batch))

    def _loss(
        self,
        batch: Batch,
        latents: torch.Tensor,
        given: _Given,
        noise: Noise,
        timesteps: torch.Tensor,
    ) -> torch.Tensor:
        """latents: (B, C, h, w). timesteps: (B,)."""
        noisy = self._process.add_noise(latents, noise.added, timesteps)
        framing = [framing_of(key) for key in batch.latent_keys]
        loss_weights = to_device(batch.loss_weights, latents.device)  # before `predict`, which the copy would wait for
        with self._accelerator.autocast():
            prediction = self._family.predict(noisy, timesteps, given.conditioning, framing, given.inpainting)
        return weighted_loss(
            prediction,
            self._process.target(latents, noise.target, timesteps),
            loss_weights=loss_weights,
            timesteps=timesteps,
            process=self._process,
            options=self._loss_options,
            masks=None if self._family.takes_masks else self._latents.masks_of(batch),  # they mean what is to be drawn
        )
