"""Options of the noise and of the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from library.cli.options import option


@dataclass(frozen=True)
class NoiseOptions:
    """What noise is added, and how the error is weighted."""

    GROUP: ClassVar[str] = "Noise and loss"

    noise_offset: float | None = option(
        help="add to each channel's noise a constant of this deviation; 0.1 lets pictures be darker and brighter",
        minimum=0,
    )
    min_snr_gamma: float | None = option(
        help="weight timesteps by min(SNR, gamma), which evens out what they contribute; 5 is usual", above=0
    )
    prior_loss_weight: float = option(1.0, help="loss weight of regularisation images", minimum=0)
