"""Discrete diffusion (DDPM): the noise process of Stable Diffusion 1.x, 2.x and XL."""

from __future__ import annotations

import torch

from library.cli.checks import Findings
from library.diffusion.loss_weights import timestep_weights
from library.diffusion.noise_schedule import NoiseSchedule
from library.diffusion.options import LossOptions, NoiseOptions
from library.diffusion.validation_rules import ScheduleShape, objective_findings


class DiscreteDiffusion:
    """A noise schedule of whole timesteps, and a model that predicts the noise or v; implements `NoiseProcess`."""

    def __init__(self, alphas_cumprod: torch.Tensor, prediction_type: str):
        """alphas_cumprod: (T,) float32. prediction_type: "epsilon" or "v_prediction"."""
        self.schedule = NoiseSchedule(alphas_cumprod)
        self.prediction_type = prediction_type

    @property
    def num_timesteps(self) -> int:
        return self.schedule.num_timesteps

    @property
    def predicts_v(self) -> bool:
        return self.prediction_type == "v_prediction"

    def to(self, device: torch.device) -> DiscreteDiffusion:
        return DiscreteDiffusion(self.schedule.alphas_cumprod.to(device), self.prediction_type)

    def draw_timesteps(self, count: int, timesteps: range, generator: torch.Generator) -> torch.Tensor:
        """Uniform draws (B,) int64 of `timesteps`, on the generator's device."""
        shape = (count,)
        return torch.randint(timesteps.start, timesteps.stop, shape, generator=generator, device=generator.device)

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return self.schedule.add_noise(latents, noise, timesteps)

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The noise ("epsilon") or the velocity ("v_prediction")."""
        return self.schedule.velocity(latents, noise, timesteps) if self.predicts_v else noise

    def loss_weights(self, timesteps: torch.Tensor, options: LossOptions) -> torch.Tensor:
        return timestep_weights(self.schedule.snr(timesteps), self.prediction_type, options)

    def huber_deltas(self, timesteps: torch.Tensor, options: LossOptions) -> torch.Tensor:
        """The delta (B,) of the pseudo-Huber loss: errors count squared below it, linearly above.

        "Improving Diffusion Models's Data-Corruption Resistance using Scheduled Pseudo-Huber Loss" (Khrapov et al.,
        2403.16728): delta falls from 1 where there is little noise to `huber_c` where there is most. The schedule
        `snr` depends on sigma = 1 / sqrt(SNR) and does not use `huber_scale`.
        """
        lowest, alphas = options.huber_c, self.schedule.alphas_cumprod
        if options.huber_schedule == "snr":
            return (1 - lowest) / (1 + self.schedule.snr(timesteps).rsqrt()) ** 2 + lowest
        if options.huber_schedule == "exponential":
            return options.huber_scale * lowest ** (timesteps.to(alphas.dtype) / self.num_timesteps)
        return torch.full_like(alphas[timesteps], options.huber_scale * lowest)

    def findings(self, noise: NoiseOptions, loss: LossOptions) -> Findings:
        shape = ScheduleShape(self.num_timesteps, self.schedule.ends_in_noise)
        return objective_findings(noise, loss, self.prediction_type, shape)
