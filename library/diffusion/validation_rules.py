"""Validation rules: which noise and loss options a model's prediction type and noise schedule allow. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from library.cli.errors import UserError
from library.diffusion.options import LossOptions, NoiseOptions, timestep_range


@dataclass(frozen=True)
class ScheduleShape:
    """What the rules need of a noise schedule, rescaled where `--zero_terminal_snr` asks for it.

    `ends_in_noise`: whether it has zero terminal SNR.
    """

    num_timesteps: int
    ends_in_noise: bool


def objective_findings(
    noise: NoiseOptions, loss: LossOptions, prediction_type: str, schedule: ScheduleShape
) -> Iterator[UserError | str]:
    """Noise and loss options that a model with this prediction type and noise schedule does not allow."""
    yield from prediction_findings(loss, prediction_type)
    yield from _schedule_findings(noise, loss, prediction_type, schedule)


def prediction_findings(loss: LossOptions, prediction_type: str) -> Iterator[UserError]:
    """Weights of the loss that are for the other prediction type ("epsilon", "v_prediction")."""
    predicts_v = prediction_type == "v_prediction"
    if loss.scale_v_pred_loss_like_noise_pred and not predicts_v:
        yield UserError(
            "--scale_v_pred_loss_like_noise_pred is for v-prediction models; this one predicts noise (epsilon)",
            hint="leave it out, or give --v_parameterization if the model predicts v or is to be trained to",
        )
    if loss.v_pred_like_loss and predicts_v:
        yield UserError(
            "--v_pred_like_loss is for models that predict noise (epsilon); this one predicts v",
            hint="leave it out; --scale_v_pred_loss_like_noise_pred is its counterpart",
        )


def _schedule_findings(
    noise: NoiseOptions, loss: LossOptions, prediction_type: str, schedule: ScheduleShape
) -> Iterator[UserError | str]:
    """Timesteps that the schedule does not have, and what zero terminal SNR rules out in models that predict noise."""
    trained, last = timestep_range(noise, schedule.num_timesteps), schedule.num_timesteps - 1
    if trained[-1] > last:
        flag = "--max_timestep" if (noise.max_timestep or 0) > schedule.num_timesteps else "--min_timestep"
        value = getattr(noise, flag.removeprefix("--"))
        yield UserError(
            f"{flag} {value}: the model's schedule has {schedule.num_timesteps} timesteps, 0 to {last}",
            hint=f"--min_timestep is at most {last}, --max_timestep at most {schedule.num_timesteps}",
        )
    if not schedule.ends_in_noise or prediction_type == "v_prediction":
        return
    cause = "--zero_terminal_snr" if noise.zero_terminal_snr else "rescale_betas_zero_snr in the model's scheduler"
    yield (
        f"{cause}: zero terminal SNR is for v-prediction models; this one predicts noise (epsilon) and gets no training"
        " signal at the last timestep"
    )
    for flag, is_given in (
        ("--debiased_estimation_loss", loss.debiased_estimation_loss),
        ("--v_pred_like_loss", bool(loss.v_pred_like_loss)),
    ):
        if is_given:
            yield UserError(
                f"{flag}: the weight is infinite at zero terminal SNR ({cause}) of a model that predicts"
                " noise (epsilon)",
                hint=f"leave out {flag}, or train without zero terminal SNR, which is for v-prediction models",
            )
