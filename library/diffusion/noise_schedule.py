"""The noise schedule: alphas_cumprod, SNR, velocity, zero terminal SNR."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class NoiseSchedule:
    """`alphas_cumprod` (T,) float32: the fraction of the signal's variance that is left at timestep t.

    Notation of "Denoising Diffusion Probabilistic Models" (Ho et al., 2006.11239).
    """

    alphas_cumprod: torch.Tensor

    @property
    def num_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    @property
    def ends_in_noise(self) -> bool:
        """Whether the schedule has zero terminal SNR: pure noise at the last timestep."""
        return float(self.alphas_cumprod[-1]) == 0

    def to(self, device: torch.device) -> NoiseSchedule:
        return NoiseSchedule(self.alphas_cumprod.to(device))

    def signal_and_noise(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The factors of image and noise, sqrt(a_t) and sqrt(1 - a_t), each (B, 1, 1, 1)."""
        alphas = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return alphas.sqrt(), (1 - alphas).sqrt()

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise; all (B, C, h, w)."""
        signal, sigma = self.signal_and_noise(timesteps)
        return signal * latents + sigma * noise

    def velocity(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """v = sqrt(a_t) noise - sqrt(1 - a_t) x_0 ("Progressive Distillation", Salimans and Ho, 2202.00512)."""
        signal, sigma = self.signal_and_noise(timesteps)
        return signal * noise - sigma * latents

    def snr(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Signal-to-noise ratio a_t / (1 - a_t) of each timestep, (B,)."""
        alphas = self.alphas_cumprod[timesteps]
        return alphas / (1 - alphas)


def rescale_to_zero_terminal_snr(alphas_cumprod: torch.Tensor) -> torch.Tensor:
    """The schedule (T,) rescaled to zero terminal SNR; its first value is unchanged.

    Algorithm 1 of "Common Diffusion Noise Schedules and Sample Steps are Flawed" (Lin et al., 2305.08891). A schedule
    that has it already is unchanged.
    """
    signal = alphas_cumprod.double().sqrt()
    stretched = (signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))
    return stretched.square().to(alphas_cumprod.dtype)
