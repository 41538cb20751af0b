"""Euler's method for models that are trained by flow matching."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from library.diffusion.process import NoiseProcess


class FlowEulerScheduler:
    """Steps along the predicted direction, from noise at the last timestep to the image at 0; implements `Scheduler`.

    "Flow Straight and Fast" (Liu et al., 2209.03003), section 2.1. Timesteps are spaced evenly, then shifted as the
    process shifts them in training.
    """

    init_noise_sigma = 1.0

    def __init__(self, process: NoiseProcess):
        self._length = process.num_timesteps
        self._shift = getattr(process, "shift", 1.0)
        self.timesteps = torch.empty(0)

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        shares = torch.linspace(1, 0, num_inference_steps + 1, device=device)[:-1]
        self.timesteps = self._length * self._shift * shares / (1 + (self._shift - 1) * shares)

    def scale_model_input(self, sample: torch.Tensor, timestep: Any) -> torch.Tensor:
        return sample

    def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, **kwargs: Any) -> SimpleNamespace:
        """`prev_sample`: the latents of the next timestep."""
        later = self.timesteps[self.timesteps < timestep]
        following = later[0] if len(later) else torch.zeros_like(self.timesteps[0])
        return SimpleNamespace(prev_sample=sample + (following - timestep) / self._length * model_output)
