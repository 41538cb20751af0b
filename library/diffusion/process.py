"""The noise process of a model: how training adds noise to latents, and what the model is trained to predict."""

from __future__ import annotations

from typing import Protocol

import torch

from library.cli.checks import Findings
from library.diffusion.options import LossOptions, NoiseOptions


class NoiseProcess(Protocol):
    """A noise process. Implementations: `DiscreteDiffusion` (DDPM), `FlowMatching` (rectified flow).

    Timesteps (B,) count from 0, no noise or the least, to `num_timesteps`, in whatever numbers the model was trained
    with. Latents, noise and targets are (B, C, h, w).
    """

    prediction_type: str  # as metadata and Diffusers' configurations name it: "epsilon", "v_prediction", "flow"

    @property
    def num_timesteps(self) -> int: ...

    def to(self, device: torch.device) -> NoiseProcess: ...

    def draw_timesteps(self, count: int, timesteps: range, generator: torch.Generator) -> torch.Tensor:
        """Timesteps (B,) in `timesteps` as training draws them, on the generator's device, from it alone."""

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor: ...

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor: ...

    def loss_weights(self, timesteps: torch.Tensor, options: LossOptions) -> torch.Tensor:
        """The weight (B,) of the loss at each timestep: the product of all that the options enable."""

    def huber_deltas(self, timesteps: torch.Tensor, options: LossOptions) -> torch.Tensor:
        """The delta (B,) of the pseudo-Huber loss at each timestep."""

    def findings(self, noise: NoiseOptions, loss: LossOptions) -> Findings:
        """Noise and loss options that this process does not allow."""
