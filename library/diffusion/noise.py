"""Noise and timesteps of a micro-batch, drawn from the generator given and from nothing else."""

from __future__ import annotations

import torch

from library.diffusion.options import NoiseOptions


def make_noise(latents: torch.Tensor, options: NoiseOptions, generator: torch.Generator) -> torch.Tensor:
    """Noise shaped like `latents` (B, C, h, w), float32, on their device.

    With `noise_offset`, each channel of each picture is shifted by a constant, itself normal with that deviation
    ("Diffusion with Offset Noise", Guttenberg, 2023).
    """
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    if options.noise_offset:
        shape = (*latents.shape[:2], 1, 1)
        noise = noise + options.noise_offset * torch.randn(shape, generator=generator, device=latents.device)
    return noise


def sample_timesteps(batch_size: int, num_timesteps: int, generator: torch.Generator) -> torch.Tensor:
    """Uniform timesteps (B,) int64 on the generator's device."""
    return torch.randint(0, num_timesteps, (batch_size,), generator=generator, device=generator.device)
