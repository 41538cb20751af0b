"""Checks of the noise and loss options against the loaded model: its prediction type and noise schedule."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from library.cli.errors import UserError, raise_together
from library.diffusion.noise import timestep_range
from library.diffusion.noise_schedule import NoiseSchedule
from library.diffusion.options import LossOptions, NoiseOptions

logger = logging.getLogger(__name__)


def check_objective(noise: NoiseOptions, loss: LossOptions, prediction_type: str, schedule: NoiseSchedule) -> None:
    """Raises `UserError` for options that do not fit the prediction type; warns of zero terminal SNR with epsilon.

    `schedule`: the one that is trained on, rescaled where `--zero_terminal_snr` asks for it.
    """
    raise_together([
        *_kind_problems(loss, prediction_type),
        *_schedule_problems(noise, loss, prediction_type, schedule),
    ])  # fmt: skip
    if schedule.ends_in_noise and prediction_type != "v_prediction":
        logger.warning(
            "%s: zero terminal SNR is for v-prediction models; this one predicts noise (epsilon) and gets no training"
            " signal at the last timestep",
            _cause(noise),
        )


def _cause(noise: NoiseOptions) -> str:
    return "--zero_terminal_snr" if noise.zero_terminal_snr else "rescale_betas_zero_snr in the model's scheduler"


def _kind_problems(loss: LossOptions, prediction_type: str) -> Iterator[UserError]:
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


def _schedule_problems(
    noise: NoiseOptions, loss: LossOptions, prediction_type: str, schedule: NoiseSchedule
) -> Iterator[UserError]:
    trained, last = timestep_range(noise, schedule.num_timesteps), schedule.num_timesteps - 1
    if trained[-1] > last:
        flag = "--max_timestep" if (noise.max_timestep or 0) > schedule.num_timesteps else "--min_timestep"
        value = getattr(noise, flag.removeprefix("--"))
        yield UserError(
            f"{flag} {value}: the model's schedule has {schedule.num_timesteps} timesteps, 0 to {last}",
            hint=f"--min_timestep is at most {last}, --max_timestep at most {schedule.num_timesteps}",
        )
    if schedule.ends_in_noise and prediction_type != "v_prediction":
        for flag, is_given in (
            ("--debiased_estimation_loss", loss.debiased_estimation_loss),
            ("--v_pred_like_loss", bool(loss.v_pred_like_loss)),
        ):
            if is_given:
                yield UserError(
                    f"{flag}: the weight is infinite at zero terminal SNR ({_cause(noise)}) of a model that predicts"
                    " noise (epsilon)",
                    hint=f"leave out {flag}, or train without zero terminal SNR, which is for v-prediction models",
                )
