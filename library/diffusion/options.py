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
    """The noise that is added to latents, and the timesteps that are trained."""

    GROUP: ClassVar[str] = "Noise and timesteps"

    noise_offset: float | None = option(
        help="offset noise: shift each channel by a constant of this standard deviation; 0.1 allows darker and brighter"
        " images",
        minimum=0,
    )
    noise_offset_random_strength: bool = option(
        False, help="draw the offset of each image uniformly from 0 to --noise_offset"
    )
    adaptive_noise_scale: float | None = option(
        help="add this multiple of the channel's absolute mean to the noise offset; may be negative"
    )
    multires_noise_iterations: int | None = option(
        help="multi-resolution (pyramid) noise: number of resolutions to add; 6 to 10 are usual", minimum=0
    )
    multires_noise_discount: float = option(
        _DISCOUNT, help="weight of each coarser resolution relative to the one before; 0.3 is usual", minimum=0
    )
    ip_noise_gamma: float | None = option(
        help="input perturbation: extra noise added to the input but not to the target; 0.1 is usual", minimum=0
    )
    ip_noise_gamma_random_strength: bool = option(
        False, help="draw the perturbation of each image uniformly from 0 to --ip_noise_gamma"
    )
    min_timestep: int | None = option(help="lowest timestep to train (default: 0)", minimum=0)
    max_timestep: int | None = option(
        help="train only timesteps below this one (default: all); equal to --min_timestep: that timestep alone",
        minimum=1,
    )
    zero_terminal_snr: bool = option(
        False,
        help="rescale the noise schedule to zero terminal SNR (pure noise at the last step); for v-prediction models",
    )

    def check(self) -> Iterator[UserError | str]:
        if self.min_timestep is not None and self.max_timestep is not None and self.min_timestep > self.max_timestep:
            yield UserError(
                f"--min_timestep {self.min_timestep} is larger than --max_timestep {self.max_timestep}",
                hint="timesteps from --min_timestep up to, not including, --max_timestep are trained: swap the two",
            )
        yield from self._without_effect()

    def _without_effect(self) -> Iterator[str]:
        """One line for each option that has no effect together with the others."""
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
    """The loss function and the weights of the loss."""

    GROUP: ClassVar[str] = "Loss"

    loss_type: str = option(
        "l2",
        help="loss function: l2, l1, or pseudo-Huber (huber, smooth_l1)",
        choices=("l2", "l1", "huber", "smooth_l1"),
    )
    huber_schedule: str = option(
        _HUBER_SCHEDULE,
        help="how the Huber delta depends on the timestep (huber, smooth_l1)",
        choices=("constant", "exponential", "snr"),
    )
    huber_c: float = option(
        _HUBER_C, help="Huber delta; where --huber_schedule varies it, its value at the noisiest timestep", above=0
    )
    huber_scale: float = option(
        _HUBER_SCALE, help="factor of the Huber delta, for the schedules constant and exponential", above=0
    )
    min_snr_gamma: float | None = option(
        help="min-SNR-gamma weighting: limits the weight of timesteps with little noise; 5 is usual", above=0
    )
    scale_v_pred_loss_like_noise_pred: bool = option(
        False, help="weight timesteps as if the noise were predicted; for v-prediction models"
    )
    v_pred_like_loss: float | None = option(
        help="add this share of the loss as if v were predicted; for models that predict noise (epsilon)", minimum=0
    )
    debiased_estimation_loss: bool = option(
        False, help="debiased estimation: weight timesteps by 1/sqrt(SNR); for v-prediction by 1/(SNR + 1)"
    )
    masked_loss: bool = option(
        False,
        help="weight the loss by the images' masks, from alpha_mask or conditioning_data_dir of the dataset",
    )
    prior_loss_weight: float = option(1.0, help="prior preservation: loss weight of regularisation images", minimum=0)

    def check(self) -> Iterator[UserError | str]:
        if self.scale_v_pred_loss_like_noise_pred and self.v_pred_like_loss:
            yield UserError(
                "--scale_v_pred_loss_like_noise_pred is for v-prediction models, --v_pred_like_loss for the others",
                hint="leave out the one that is not for your model",
            )
        yield from self._without_effect()

    def _without_effect(self) -> Iterator[str]:
        """One line for each option that has no effect together with the others."""
        is_huber = self.loss_type in ("huber", "smooth_l1")
        for name, value, usual in (
            ("huber_schedule", self.huber_schedule, _HUBER_SCHEDULE),
            ("huber_c", self.huber_c, _HUBER_C),
            ("huber_scale", self.huber_scale, _HUBER_SCALE),
        ):
            if value != usual and not is_huber:
                yield f"--{name} does nothing with --loss_type {self.loss_type}: it belongs to huber and smooth_l1"
        if is_huber and self.huber_scale != _HUBER_SCALE and self.huber_schedule == "snr":
            yield "--huber_scale does nothing with --huber_schedule snr: it belongs to constant and exponential"


def timestep_range(options: NoiseOptions, num_timesteps: int) -> range:
    """The timesteps that are trained, of a schedule with `num_timesteps`.

    From `min_timestep` up to `max_timestep`, which is not included; where both are the same it is that one alone.
    """
    first = options.min_timestep or 0
    end = num_timesteps if options.max_timestep is None else options.max_timestep
    return range(first, max(first + 1, end))
