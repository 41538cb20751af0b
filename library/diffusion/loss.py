"""The loss of a micro-batch: L2, L1 or pseudo-Huber, weighted by timestep, image and mask."""

from __future__ import annotations

from collections.abc import Callable

import torch

from library.diffusion.loss_weights import timestep_weights
from library.diffusion.noise_schedule import NoiseSchedule
from library.diffusion.options import LossOptions


def huber_delta(timesteps: torch.Tensor, schedule: NoiseSchedule, options: LossOptions) -> torch.Tensor:
    """The delta of the pseudo-Huber loss at each timestep, (B,): errors count squared below it, linearly above.

    "Improving Diffusion Models's Data-Corruption Resistance using Scheduled Pseudo-Huber Loss" (Khrapov et al.,
    2403.16728): delta falls from 1 where there is little noise to `huber_c` where there is most. The schedule
    `snr` depends on sigma = 1 / sqrt(SNR) and does not use `huber_scale`.
    """
    lowest = options.huber_c
    if options.huber_schedule == "snr":
        return (1 - lowest) / (1 + schedule.snr(timesteps).rsqrt()) ** 2 + lowest
    if options.huber_schedule == "exponential":
        progress = timesteps.to(schedule.alphas_cumprod.dtype) / schedule.num_timesteps
        return options.huber_scale * lowest**progress
    return torch.full_like(schedule.alphas_cumprod[timesteps], options.huber_scale * lowest)


def _smooth_l1(difference: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """2 (sqrt(d^2 + c^2) - c): d^2 / c where d is small, 2 |d| where it is large."""
    squares = difference.square()
    return 2 * squares / ((squares + c.square()).sqrt() + c)  # the difference above, without its loss of digits


def _huber(difference: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """2 c (sqrt(d^2 + c^2) - c): d^2 where d is small, 2 c |d| where it is large."""
    return c * _smooth_l1(difference, c)


# each takes differences (B, C, h, w) and Huber deltas (B, 1, 1, 1)
_LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "l2": lambda difference, _: difference.square(),
    "l1": lambda difference, _: difference.abs(),
    "huber": _huber,
    "smooth_l1": _smooth_l1,
}


def weighted_loss(
    prediction: torch.Tensor,
    target: torch.Tensor,
    *,
    loss_weights: torch.Tensor,
    timesteps: torch.Tensor,
    schedule: NoiseSchedule,
    prediction_type: str,
    options: LossOptions,
    masks: torch.Tensor | None = None,
) -> torch.Tensor:
    """The mean loss per image, in float32 or better, weighted, then the mean over the B images; a scalar.

    prediction, target: (B, C, h, w). loss_weights: (B,), `prior_loss_weight` for regularisation images. masks:
    (B, 1, h, w), the weight of each element; the mean is over all elements, so that an image that is mostly
    masked out has a small loss.
    """
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    deltas = huber_delta(timesteps, schedule, options).view(-1, 1, 1, 1)
    errors = _LOSSES[options.loss_type](prediction.to(dtype) - target.to(dtype), deltas)
    if masks is not None:
        errors = errors * masks
    weights = loss_weights * timestep_weights(schedule.snr(timesteps), prediction_type, options)
    return (errors.mean(dim=(1, 2, 3)) * weights).mean()
