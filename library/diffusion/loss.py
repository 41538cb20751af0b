"""The loss of a micro-batch: L2, L1 or pseudo-Huber, weighted by timestep, image and mask."""

from __future__ import annotations

from collections.abc import Callable

import torch

from library.diffusion.options import LossOptions
from library.diffusion.process import NoiseProcess


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
    process: NoiseProcess,
    options: LossOptions,
    masks: torch.Tensor | None = None,
) -> torch.Tensor:
    """The mean loss per image, in float32 or better, weighted, then the mean over the B images; a scalar.

    prediction, target: (B, C, h, w). loss_weights: (B,), `prior_loss_weight` for regularisation images. masks:
    (B, 1, h, w), the weight of each element; the mean is over all elements, so that an image that is mostly
    masked out has a small loss.
    """
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    deltas = process.huber_deltas(timesteps, options).view(-1, 1, 1, 1)
    errors = _LOSSES[options.loss_type](prediction.to(dtype) - target.to(dtype), deltas)
    if masks is not None:
        errors = errors * masks
    weights = loss_weights * process.loss_weights(timesteps, options)
    return (errors.mean(dim=(1, 2, 3)) * weights).mean()
