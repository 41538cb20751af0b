"""The loss of a micro-batch and its weights."""

from __future__ import annotations

import torch

from library.diffusion.options import NoiseOptions
from library.diffusion.schedule import NoiseSchedule


def min_snr_weights(snr: torch.Tensor, gamma: float, prediction_type: str) -> torch.Tensor:
    """Weights (B,) of "Efficient Diffusion Training via Min-SNR Weighting Strategy" (Hang et al., 2303.09556).

    min(SNR, gamma) / SNR where noise is predicted, min(SNR, gamma) / (SNR + 1) where velocity is.
    """
    divisor = snr + 1 if prediction_type == "v_prediction" else snr
    return snr.clamp(max=gamma) / divisor


def weighted_loss(
    prediction: torch.Tensor,
    target: torch.Tensor,
    *,
    loss_weights: torch.Tensor,
    timesteps: torch.Tensor,
    schedule: NoiseSchedule,
    prediction_type: str,
    options: NoiseOptions,
    masks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean squared error per picture, in float32, weighted, then the mean over the B pictures; a scalar.

    prediction, target: (B, C, h, w). loss_weights: (B,), `prior_loss_weight` for regularisation images. masks:
    (B, 1, h, w), what each square counts; the mean is over all of them, so that a picture of which little counts
    has a small loss.
    """
    squares = (prediction.float() - target.float()).square()
    if masks is not None:
        squares = squares * masks
    per_picture = squares.mean(dim=(1, 2, 3))
    weights = loss_weights
    if options.min_snr_gamma is not None:
        weights = weights * min_snr_weights(schedule.snr(timesteps), options.min_snr_gamma, prediction_type)
    return (per_picture * weights).mean()
