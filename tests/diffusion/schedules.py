"""Stable Diffusion's noise schedule in NumPy and float64, independently of the library."""

from __future__ import annotations

import numpy as np
import torch

from library.diffusion.discrete_diffusion import DiscreteDiffusion
from library.diffusion.noise_schedule import NoiseSchedule

BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
ALPHAS = np.cumprod(1 - BETAS)


def schedule(dtype: torch.dtype = torch.float32) -> NoiseSchedule:
    return NoiseSchedule(torch.tensor(ALPHAS, dtype=dtype))


def process(prediction_type: str = "epsilon", dtype: torch.dtype = torch.float32) -> DiscreteDiffusion:
    return DiscreteDiffusion(schedule(dtype).alphas_cumprod, prediction_type)


def snr_at(timesteps: np.ndarray) -> np.ndarray:
    return ALPHAS[timesteps] / (1 - ALPHAS[timesteps])


def draws(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)
