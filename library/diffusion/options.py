"""Options of the noise and of the loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from library.cli.errors import UserError
from library.cli.options import option

_DISCOUNT, _HUBER_C, _HUBER_SCALE, _HUBER_SCHEDULE = 0.3, 0.1, 1.0, "snr"


@dataclass(frozen=True)
class NoiseOptions:
    """What noise is added, how much of it, and at which timesteps."""

    GROUP: ClassVar[str] = "Noise and timesteps"

    noise_offset: float | None = option(
        help="add to each channel's noise a constant of this deviation; 0.1 lets images be darker and brighter",
        minimum=0,
    )
    noise_offset_random_strength: bool = option(
        False, help="draw each image's noise offset between 0 and --noise_offset"
    )
    adaptive_noise_scale: float | None = option(
        help="add to the noise offset this much of the channel's mean, without its sign; may be negative"
    )
    multires_noise_iterations: int | None = option(
        help="add noise of so many coarser resolutions; 6 to 10 are usual", minimum=0
    )
    multires_noise_discount: float = option(
        _DISCOUNT, help="share of each coarser resolution in that of the one before; 0.3 is usual", minimum=0
    )
    ip_noise_gamma: float | None = option(
        help="input perturbation: noise that is added and not to be found; 0.1 is usual", minimum=0
    )
    ip_noise_gamma_random_strength: bool = option(
        False, help="draw each image's perturbation between 0 and --ip_noise_gamma"
    )
    min_timestep: int | None = option(help="train no timesteps below this one (default: 0)", minimum=0)
    max_timestep: int | None = option(
        help="train only timesteps below this one (default: all); equal to --min_timestep: that one alone", minimum=1
    )
    zero_terminal_snr: bool = option(
        False, help="rescale the noise schedule so that its last step is noise alone; for models that predict v"
    )

    def problems(self) -> Iterator[UserError]:
        if self.min_timestep is not None and self.max_timestep is not None and self.min_timestep > self.max_timestep:
            yield UserError(
                f"--min_timestep {self.min_timestep} is larger than --max_timestep {self.max_timestep}",
                hint="timesteps from the one up to the other are trained, the last not included: swap them",
            )

    def without_effect(self) -> Iterator[str]:
        """What was asked for and changes nothing beside the other options."""
        if self.noise_offset_random_strength and not self.noise_offset:
            yield "--noise_offset_random_strength does nothing without --noise_offset"
        if (self.adaptive_noise_scale or 0) < 0 and not self.noise_offset:
            yield f"--adaptive_noise_scale {self.adaptive_noise_scale} has no --noise_offset to lower: it does nothing"
        if self.multires_noise_discount != _DISCOUNT and not self.multires_noise_iterations:
            yield "--multires_noise_discount does nothing without --multires_noise_iterations"
        if self.ip_noise_gamma_random_strength and not self.ip_noise_gamma:
            yield "--ip_noise_gamma_random_strength does nothing without --ip_noise_gamma"


@dataclass(frozen=True)
class LossOptions:
    """How an error is measured, and how much each counts."""

    GROUP: ClassVar[str] = "Loss"

    loss_type: str = option(
        "l2",
        help="measure of an error: its square, its size, or the square of small and the size of large ones",
        choices=("l2", "l1", "huber", "smooth_l1"),
    )
    huber_schedule: str = option(
        _HUBER_SCHEDULE,
        help="how the border between small and large errors depends on the timestep, for huber and smooth_l1",
        choices=("constant", "exponential", "snr"),
    )
    huber_c: float = option(
        _HUBER_C, help="that border, or where it depends on the timestep its value where noise is strongest", above=0
    )
    huber_scale: float = option(
        _HUBER_SCALE, help="multiplies the border of the schedules constant and exponential", above=0
    )
    min_snr_gamma: float | None = option(
        help="weight timesteps by min(SNR, gamma), which evens out what they contribute; 5 is usual", above=0
    )
    scale_v_pred_loss_like_noise_pred: bool = option(
        False, help="weight timesteps as if the noise were predicted; for models that predict v"
    )
    v_pred_like_loss: float | None = option(
        help="add this much of the loss as if v were predicted; for models that predict noise", minimum=0
    )
    debiased_estimation_loss: bool = option(False, help="weight timesteps by the debiased estimation's 1/sqrt(SNR)")
    masked_loss: bool = option(
        False,
        help="weight the loss by the images' masks, which alpha_mask or conditioning_data_dir in the dataset make",
    )
    prior_loss_weight: float = option(1.0, help="loss weight of regularisation images", minimum=0)

    def problems(self) -> Iterator[UserError]:
        if self.scale_v_pred_loss_like_noise_pred and self.v_pred_like_loss:
            yield UserError(
                "--scale_v_pred_loss_like_noise_pred is for models that predict v, --v_pred_like_loss for the others",
                hint="leave out the one that is not for your model",
            )

    def without_effect(self) -> Iterator[str]:
        """What was asked for and changes nothing beside the other options."""
        is_huber = self.loss_type in ("huber", "smooth_l1")
        for name, value, usual in (
            ("huber_schedule", self.huber_schedule, _HUBER_SCHEDULE),
            ("huber_c", self.huber_c, _HUBER_C),
            ("huber_scale", self.huber_scale, _HUBER_SCALE),
        ):
            if value != usual and not is_huber:
                yield f"--{name} does nothing with --loss_type {self.loss_type}; it is of huber and smooth_l1"
        if is_huber and self.huber_scale != _HUBER_SCALE and self.huber_schedule == "snr":
            yield "--huber_scale does nothing with --huber_schedule snr; it is of constant and exponential"
