"""The noise schedule that a Stable Diffusion model's scheduler configuration describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from library.cli.errors import UserError
from library.diffusion.noise_schedule import rescale_to_zero_terminal_snr
from library.models.layouts.model_layout import NUM_TIMESTEPS, SCHEDULES

_BETAS = "correct beta_start, beta_end, num_train_timesteps and trained_betas of its scheduler configuration"


def make_alphas_cumprod(scheduler: Mapping[str, Any], source: str) -> torch.Tensor:
    """The noise schedule (num_train_timesteps,) float32 that a scheduler's configuration describes.

    Absent entries have Stable Diffusion's values: scaled linear, 0.00085 to 0.012, 1000 steps; computed in float32 as
    Diffusers does. Raises `UserError` for other kinds of schedule.
    """
    start, end = scheduler.get("beta_start", 0.00085), scheduler.get("beta_end", 0.012)
    num_steps = scheduler.get("num_train_timesteps", NUM_TIMESTEPS)
    kind = scheduler.get("beta_schedule", SCHEDULES[0])
    try:
        if scheduler.get("trained_betas") is not None:
            betas = torch.tensor(scheduler["trained_betas"], dtype=torch.float32)
        elif kind == "scaled_linear":
            betas = torch.linspace(start**0.5, end**0.5, num_steps, dtype=torch.float32) ** 2
        elif kind == "linear":
            betas = torch.linspace(start, end, num_steps, dtype=torch.float32)
        else:
            raise UserError(f"{source}: beta_schedule {kind!r} is not known", f"known are {' and '.join(SCHEDULES)}")
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{source}: the scheduler's betas are no numbers that make a noise schedule", _BETAS) from error
    if betas.ndim != 1 or not len(betas) or not bool(((betas > 0) & (betas <= 1)).all()):
        raise UserError(f"{source}: the scheduler's betas are no numbers between 0 and 1", _BETAS)
    alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)
    return rescale_to_zero_terminal_snr(alphas_cumprod) if scheduler.get("rescale_betas_zero_snr") else alphas_cumprod
