"""The noise of a micro-batch: plain, offset noise, multi-resolution noise, input perturbation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from library.diffusion.options import NoiseOptions


@dataclass(frozen=True)
class Noise:
    """The noise of a micro-batch, each (B, C, h, w) float32; the two differ by the input perturbation."""

    target: torch.Tensor  # what the model is trained to predict
    added: torch.Tensor  # what is added to the latents


def make_noise(latents: torch.Tensor, options: NoiseOptions, generator: torch.Generator) -> Noise:
    """Noise shaped like `latents` (B, C, h, w), on their device, drawn from `generator` alone.

    Plain Gaussian noise is drawn first, so that it is the same whatever is added to it. In that order: the noise offset
    ("Diffusion with Offset Noise", Guttenberg, 2023) shifts each channel of each image by a constant; pyramid noise
    adds coarser noise; the input perturbation ("Input Perturbation Reduces Exposure Bias in Diffusion Models", Ning et
    al., 2301.11706) is added to the model's input, and not to its target.
    """
    device = latents.device
    noise = torch.randn(latents.shape, generator=generator, device=device)
    if options.noise_offset or options.adaptive_noise_scale:
        strengths = _offset_strengths(latents, options, generator)
        noise = noise + strengths * torch.randn(strengths.shape, generator=generator, device=device)
    if options.multires_noise_iterations:
        noise = add_pyramid(noise, options.multires_noise_iterations, options.multires_noise_discount, generator)
    added = noise
    if options.ip_noise_gamma:
        gamma = _strength(
            options.ip_noise_gamma, options.ip_noise_gamma_random_strength, len(latents), generator, device
        )
        added = noise + gamma * torch.randn(latents.shape, generator=generator, device=device)
    return Noise(noise, added)


def _strength(
    largest: float, is_random: bool, batch_size: int, generator: torch.Generator, device: torch.device
) -> torch.Tensor:
    """(B, 1, 1, 1): `largest`, or for each image a number drawn uniformly between 0 and `largest`."""
    if not is_random:
        return torch.full((batch_size, 1, 1, 1), largest, device=device)
    return largest * torch.rand((batch_size, 1, 1, 1), generator=generator, device=device)


def _offset_strengths(latents: torch.Tensor, options: NoiseOptions, generator: torch.Generator) -> torch.Tensor:
    """Standard deviation (B, C, 1, 1) of the noise offset: noise_offset + adaptive_noise_scale |mean|, at least 0.

    Without `noise_offset`, the adaptive scale starts from 0.
    """
    is_random = options.noise_offset_random_strength and bool(options.noise_offset)
    offset = _strength(options.noise_offset or 0.0, is_random, len(latents), generator, latents.device)
    means = latents.float().mean(dim=(2, 3), keepdim=True).abs()
    return (offset + (options.adaptive_noise_scale or 0.0) * means).clamp(min=0)


def add_pyramid(noise: torch.Tensor, num_levels: int, discount: float, generator: torch.Generator) -> torch.Tensor:
    """Adds `num_levels` levels of noise to `noise` (B, C, h, w), coarser ones weaker; normalised to unit variance.

    "Multi-Resolution Noise for Diffusion Model Training" (Whitaker, 2023). Level i has sides of 1/r^i, r drawn between
    2 and 4 at each level, is interpolated linearly to the full size, and has the weight discount^i; the level that is
    down to one row or column is the last. Level 0 has full size and the weight of the noise given. The ratios are
    drawn on the CPU, where the sizes of tensors are needed, from the seed of `generator`.
    """
    height, width = noise.shape[2:]
    on_cpu = generator if noise.device.type == "cpu" else torch.Generator().manual_seed(generator.initial_seed())
    ratios = 2 + 2 * torch.rand(num_levels, generator=on_cpu)
    total = noise
    for level, ratio in enumerate(ratios.tolist()):
        size = max(1, int(height / ratio**level)), max(1, int(width / ratio**level))
        coarse = torch.randn((*noise.shape[:2], *size), generator=generator, device=noise.device)
        total = total + discount**level * functional.interpolate(coarse, (height, width), mode="bilinear")
        if 1 in size:
            break
    return total / total.std()
