"""Detects a model's version (1.x or 2.x), prediction type and noise schedule."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from library.cli.errors import UserError
from library.diffusion.noise_schedule import rescale_to_zero_terminal_snr
from library.models.layouts.config_metadata import stated_config
from library.models.layouts.diffusers_folder import DiffusersFolder
from library.models.options import ModelOptions
from library.models.weights.checkpoint_files import WeightFile
from library.models.weights.model_kinds import is_v2

logger = logging.getLogger(__name__)

EPSILON, V_PREDICTION = "epsilon", "v_prediction"
_PREDICTION_NAMES = {"epsilon": EPSILON, "eps": EPSILON, "v": V_PREDICTION, "v_prediction": V_PREDICTION}
_SCHEDULER_CONFIG = "scheduler/scheduler_config.json"
_WIDTH_SD2 = 1024
_BETAS = "correct beta_start, beta_end, num_train_timesteps and trained_betas of its scheduler configuration"


@dataclass(frozen=True)
class DetectedModel:
    """What was detected of a model. `prediction_type` is None where it does not say."""

    source: str
    is_v2: bool
    prediction_type: str | None
    scheduler: Mapping[str, Any] = field(default_factory=dict)


def detect_folder(folder: DiffusersFolder) -> DetectedModel:
    """What the configurations in a Diffusers folder say. Raises `UserError`."""
    text = folder.read_json("text_encoder/config.json")
    unet = folder.read_json("unet/config.json")
    is_v2 = (
        text.get("hidden_act") == "gelu"
        or text.get("hidden_size") == _WIDTH_SD2
        or unet.get("use_linear_projection") is True
        or isinstance(unet.get("attention_head_dim"), list)
    )
    scheduler = folder.read_json(_SCHEDULER_CONFIG) if folder.has(_SCHEDULER_CONFIG) else {}
    declared = scheduler.get("prediction_type")
    if declared is not None and declared not in _PREDICTION_NAMES:
        raise UserError(
            f"{folder.path / _SCHEDULER_CONFIG}: prediction_type is {declared!r}", "known are epsilon and v_prediction"
        )
    return DetectedModel(str(folder.path), is_v2, None if declared is None else _PREDICTION_NAMES[declared], scheduler)


def detect_file(file: WeightFile) -> DetectedModel:
    """What the keys and the metadata of a single file say."""
    declared = V_PREDICTION if "v_pred" in file.tensors else None
    scheduler = stated_config(file.metadata, "scheduler", {}, str(file.path))
    for value in (scheduler.get("prediction_type"), file.metadata.get("modelspec.prediction_type")):
        declared = _PREDICTION_NAMES.get(str(value), declared)
    return DetectedModel(str(file.path), is_v2(file.tensors), declared, scheduler)


def check_flags(detected: DetectedModel, options: ModelOptions) -> None:
    """Raises `UserError` for --v2 with a Stable Diffusion 1.x model."""
    if options.v2 and not detected.is_v2:
        raise UserError(f"--v2 was given, but {detected.source} is Stable Diffusion 1.x", "leave out --v2")


def choose_prediction_type(detected: DetectedModel, options: ModelOptions) -> str:
    """The prediction type for training and saving; logs where it is not obvious.

    v where the flag or the model says so, else epsilon. (A noise-prediction model can be trained to predict v.)
    """
    if options.v_parameterization:
        if detected.prediction_type == EPSILON:
            logger.warning(
                "%s says that it predicts noise (epsilon): with --v_parameterization it is trained and saved as a"
                " v-prediction model; leave the flag out unless you want to turn it into one",
                detected.source,
            )
        return V_PREDICTION
    if detected.prediction_type == V_PREDICTION:
        logger.info("%s is a v-prediction model: trained as with --v_parameterization", detected.source)
    if detected.prediction_type is None and detected.is_v2:
        logger.warning(
            "%s does not say what it predicts, noise (epsilon) is assumed; SD 2.x 768 needs --v_parameterization",
            detected.source,
        )
    return detected.prediction_type or EPSILON


def make_alphas_cumprod(scheduler: Mapping[str, Any], source: str) -> torch.Tensor:
    """The noise schedule (num_train_timesteps,) float32 that a scheduler's configuration describes.

    Absent entries have Stable Diffusion's values: scaled linear, 0.00085 to 0.012, 1000 steps; computed in float32 as
    Diffusers does. Raises `UserError` for other kinds of schedule.
    """
    start, end = scheduler.get("beta_start", 0.00085), scheduler.get("beta_end", 0.012)
    num_steps = scheduler.get("num_train_timesteps", 1000)
    kind = scheduler.get("beta_schedule", "scaled_linear")
    try:
        if scheduler.get("trained_betas") is not None:
            betas = torch.tensor(scheduler["trained_betas"], dtype=torch.float32)
        elif kind == "scaled_linear":
            betas = torch.linspace(start**0.5, end**0.5, num_steps, dtype=torch.float32) ** 2
        elif kind == "linear":
            betas = torch.linspace(start, end, num_steps, dtype=torch.float32)
        else:
            raise UserError(f"{source}: beta_schedule {kind!r} is not known", "known are scaled_linear and linear")
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{source}: the scheduler's betas are no numbers that make a noise schedule", _BETAS) from error
    if betas.ndim != 1 or not len(betas) or not bool(((betas > 0) & (betas <= 1)).all()):
        raise UserError(f"{source}: the scheduler's betas are no numbers between 0 and 1", _BETAS)
    alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)
    return rescale_to_zero_terminal_snr(alphas_cumprod) if scheduler.get("rescale_betas_zero_snr") else alphas_cumprod
