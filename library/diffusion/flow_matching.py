"""Flow matching (rectified flow): the noise process of models that are trained on straight lines to noise."""

from __future__ import annotations

import torch

from library.cli.checks import Findings
from library.cli.errors import UserError
from library.diffusion.options import LossOptions, NoiseOptions


class FlowMatching:
    """x_t = (1 - s) x_0 + s noise with s = t / 1000, and a model that predicts noise - x_0; implements `NoiseProcess`.

    "Flow Straight and Fast" (Liu et al., 2209.03003). Training draws t with the density of a logit-normal or a uniform
    distribution, and shifts it to more noise, s' = shift s / (1 + (shift - 1) s): "Scaling Rectified Flow Transformers"
    (Esser et al., 2403.03206). Timesteps are float32.
    """

    prediction_type = "flow"
    num_timesteps = 1000

    def __init__(self, shift: float = 1.0, *, logit_normal: bool = True):
        self.shift = shift
        self._is_logit_normal = logit_normal

    def to(self, device: torch.device) -> FlowMatching:
        return self

    def draw_timesteps(self, count: int, timesteps: range, generator: torch.Generator) -> torch.Tensor:
        """Draws (B,) float32: a fraction of `timesteps`, then shifted within them."""
        device = generator.device
        if self._is_logit_normal:
            fractions = torch.randn((count,), generator=generator, device=device).sigmoid()
        else:
            fractions = torch.rand((count,), generator=generator, device=device)
        shifted = self.shift * fractions / (1 + (self.shift - 1) * fractions)
        return timesteps.start + shifted * (timesteps.stop - timesteps.start)

    def _noise_shares(self, timesteps: torch.Tensor) -> torch.Tensor:
        return (timesteps.float() / self.num_timesteps).view(-1, 1, 1, 1)

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        shares = self._noise_shares(timesteps)
        return (1 - shares) * latents + shares * noise

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return noise - latents

    def loss_weights(self, timesteps: torch.Tensor, options: LossOptions) -> torch.Tensor:
        return torch.ones(len(timesteps), device=timesteps.device)

    def huber_deltas(self, timesteps: torch.Tensor, options: LossOptions) -> torch.Tensor:
        """As `DiscreteDiffusion.huber_deltas`; with the schedule `snr`, sigma is s / (1 - s)."""
        shares = self._noise_shares(timesteps).flatten()
        lowest = options.huber_c
        if options.huber_schedule == "snr":
            return (1 - lowest) * (1 - shares).square() + lowest
        if options.huber_schedule == "exponential":
            return options.huber_scale * lowest**shares
        return torch.full_like(shares, options.huber_scale * lowest)

    def findings(self, noise: NoiseOptions, loss: LossOptions) -> Findings:
        """Options that are computed from a noise schedule, or name another prediction."""
        for flag, is_given in (
            ("--min_snr_gamma", loss.min_snr_gamma is not None),
            ("--debiased_estimation_loss", loss.debiased_estimation_loss),
            ("--scale_v_pred_loss_like_noise_pred", loss.scale_v_pred_loss_like_noise_pred),
            ("--v_pred_like_loss", bool(loss.v_pred_like_loss)),
            ("--zero_terminal_snr", noise.zero_terminal_snr),
        ):
            if is_given:
                yield UserError(f"{flag} is for models with a noise schedule; this one is a flow", "leave it out")
