"""Loss weights of timesteps, computed from the noise schedule's signal-to-noise ratio (SNR)."""

from __future__ import annotations

import torch

from library.diffusion.options import LossOptions

# the SNR goes towards infinity at the first timesteps: the weights below clip it here
_MAX_SNR = 1000.0


def min_snr_weights(snr: torch.Tensor, gamma: float, prediction_type: str) -> torch.Tensor:
    """Weights (B,) of "Efficient Diffusion Training via Min-SNR Weighting Strategy" (Hang et al., 2303.09556).

    min(SNR, gamma) / SNR where noise is predicted, min(SNR, gamma) / (SNR + 1) where velocity is. At SNR 0 the former
    is 1, the limit.
    """
    if prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    return (gamma / snr).clamp(max=1)


def noise_like_weights(snr: torch.Tensor) -> torch.Tensor:
    """SNR / (SNR + 1), (B,): by it, the squared error of v is the squared error of the noise that v implies."""
    capped = snr.clamp(max=_MAX_SNR)
    return capped / (capped + 1)


def v_like_weights(snr: torch.Tensor, share: float) -> torch.Tensor:
    """1 + share (SNR + 1) / SNR, (B,): the squared error of the noise, and a share of that of the v it implies.

    Infinite where the SNR is 0.
    """
    return 1 + share / noise_like_weights(snr)


def debiased_weights(snr: torch.Tensor, prediction_type: str) -> torch.Tensor:
    """Weights (B,) of "Debias the Training of Diffusion Models" (Yu et al., 2310.08442).

    1 / sqrt(SNR) where noise is predicted, infinite where the SNR is 0; 1 / (SNR + 1) where velocity is.
    """
    capped = snr.clamp(max=_MAX_SNR)
    return 1 / (capped + 1) if prediction_type == "v_prediction" else capped.rsqrt()


def timestep_weights(snr: torch.Tensor, prediction_type: str, options: LossOptions) -> torch.Tensor:
    """The loss weight of each image, (B,), by its SNR (B,): the product of all weights that the options enable."""
    weights = torch.ones_like(snr)
    if options.min_snr_gamma is not None:
        weights = weights * min_snr_weights(snr, options.min_snr_gamma, prediction_type)
    if options.scale_v_pred_loss_like_noise_pred:
        weights = weights * noise_like_weights(snr)
    if options.v_pred_like_loss:
        weights = weights * v_like_weights(snr, options.v_pred_like_loss)
    if options.debiased_estimation_loss:
        weights = weights * debiased_weights(snr, prediction_type)
    return weights
