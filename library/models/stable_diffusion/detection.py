"""Detects a model's version (1.x or 2.x), prediction type and sizes from its small files. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from library.cli.errors import UserError, raise_together
from library.diffusion.options import NoiseOptions
from library.diffusion.validation_rules import ScheduleShape
from library.models.layouts.model_layout import (
    EPSILON,
    NUM_TIMESTEPS,
    SCHEDULES,
    V_PREDICTION,
    ModelLayout,
    channels_error,
)
from library.models.layouts.stored_configs import read_stated_scheduler
from library.models.options import ModelOptions, PromptOptions
from library.models.stable_diffusion.layout import layout_of
from library.models.weights.model_files import ModelFolder, TensorFile
from library.models.weights.model_kinds import (
    TEXT_PREFIX_V1,
    TEXT_PREFIX_V2,
    UNET_PREFIX,
    VAE_PREFIX,
    is_stable_diffusion_folder,
    is_v1,
    is_v2,
)

_PREDICTION_NAMES = {"epsilon": EPSILON, "eps": EPSILON, "v": V_PREDICTION, "v_prediction": V_PREDICTION}
_SCHEDULER_CONFIG = "scheduler/scheduler_config.json"
_WIDTH_SD2 = 1024
_LAYERS_SD2 = 23  # of the text encoder, without its last, which some files have
_LAYER_V1 = re.compile(re.escape(TEXT_PREFIX_V1) + r"(?:text_model\.)?encoder\.layers\.(\d+)\.")
_LAYER_V2 = re.compile(re.escape(TEXT_PREFIX_V2) + r"transformer\.resblocks\.(\d+)\.")


@dataclass(frozen=True)
class DetectedModel:
    """What a model's small files say; None where they do not say it. `scheduler`: entries of its configuration.

    `unet_channels`: what the U-Net takes and gives. `num_text_layers`: of the text encoder, those that are used.
    """

    source: str
    is_v2: bool
    prediction_type: str | None
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    num_text_layers: int | None = None
    unet_channels: tuple[int, int] | None = None
    latent_channels: int | None = None

    @property
    def layout(self) -> ModelLayout:
        """What its files look like."""
        return layout_of(self.is_v2)

    def predicts(self, options: ModelOptions) -> str:
        """The prediction type for training and saving: v where the flag or the model says so, else epsilon.

        (A noise-prediction model can be trained to predict v.)
        """
        return V_PREDICTION if options.v_parameterization else self.prediction_type or EPSILON

    def schedule_shape(self, noise: NoiseOptions) -> ScheduleShape:
        """Length and end of the noise schedule that is trained on."""
        betas = self.scheduler.get("trained_betas")
        betas = betas if isinstance(betas, list) else []
        length = len(betas) or _whole(self.scheduler.get("num_train_timesteps")) or NUM_TIMESTEPS
        is_rescaled = noise.zero_terminal_snr or bool(self.scheduler.get("rescale_betas_zero_snr"))
        return ScheduleShape(length, ends_in_noise=is_rescaled or 1 in betas)


def is_stable_diffusion(source: ModelFolder | TensorFile) -> bool:
    """Whether a folder or file is a Stable Diffusion 1.x or 2.x model, or the larger part of one."""
    if isinstance(source, ModelFolder):
        return is_stable_diffusion_folder(source.path)
    return is_v1(source.tensors) or is_v2(source.tensors)


def detect(source: ModelFolder | TensorFile) -> DetectedModel:
    """What the small files of a Stable Diffusion model say. Raises `UserError` for damaged ones."""
    return _detect_folder(source) if isinstance(source, ModelFolder) else _detect_file(source)


def _detect_folder(folder: ModelFolder) -> DetectedModel:
    configs, errors = {}, []
    for part in ("text_encoder", "unet", "vae"):
        if part == "vae" and not folder.has("vae/config.json"):
            continue  # --vae may give another
        try:
            configs[part] = folder.read_json(f"{part}/config.json")
        except UserError as error:
            errors.append(error)
    raise_together(errors)
    text, unet, vae = configs["text_encoder"], configs["unet"], configs.get("vae")
    scheduler = folder.read_json(_SCHEDULER_CONFIG) if folder.has(_SCHEDULER_CONFIG) else {}
    declared = scheduler.get("prediction_type")
    if declared is not None and declared not in _PREDICTION_NAMES:
        raise UserError(
            f"{folder.path / _SCHEDULER_CONFIG}: prediction_type is {declared!r}", "known are epsilon and v_prediction"
        )
    return DetectedModel(
        str(folder.path),
        is_v2=text.get("hidden_act") == "gelu"
        or text.get("hidden_size") == _WIDTH_SD2
        or unet.get("use_linear_projection") is True
        or isinstance(unet.get("attention_head_dim"), list),
        prediction_type=None if declared is None else _PREDICTION_NAMES[declared],
        scheduler=scheduler,
        num_text_layers=_whole(text.get("num_hidden_layers")),
        unet_channels=(_whole(unet.get("in_channels")) or 4, _whole(unet.get("out_channels")) or 4),
        latent_channels=None if vae is None else _whole(vae.get("latent_channels")) or 4,
    )


def _detect_file(file: TensorFile) -> DetectedModel:
    declared = V_PREDICTION if "v_pred" in file.tensors else None
    scheduler = read_stated_scheduler(file.metadata, str(file.path))
    for value in (scheduler.get("prediction_type"), file.metadata.get("modelspec.prediction_type")):
        declared = _PREDICTION_NAMES.get(str(value), declared)
    is_second = is_v2(file.tensors)
    taken = _size(file, f"{UNET_PREFIX}input_blocks.0.0.weight", 1)
    given = _size(file, f"{UNET_PREFIX}out.2.weight", 0)
    return DetectedModel(
        str(file.path),
        is_second,
        declared,
        scheduler,
        num_text_layers=_num_text_layers(file, is_second),
        unet_channels=None if taken is None or given is None else (taken, given),
        latent_channels=_size(file, f"{VAE_PREFIX}decoder.conv_in.weight", 1),
    )


def _whole(value: Any) -> int | None:
    """A number of a configuration; None for what is none, which is reported when the model is built."""
    return value if type(value) is int and value > 0 else None


def _size(file: TensorFile, key: str, dimension: int) -> int | None:
    shape = tuple(file.tensors[key].shape) if key in file.tensors else ()
    return shape[dimension] if len(shape) > dimension else None


def _num_text_layers(file: TensorFile, is_v2: bool) -> int | None:
    """The number of layers; of SD 2.x without the last one, which is not used."""
    layer = _LAYER_V2 if is_v2 else _LAYER_V1
    indices = [int(match[1]) for match in map(layer.match, file.tensors) if match]
    if not indices:
        return None
    count = max(indices) + 1
    return count - 1 if is_v2 and count != _LAYERS_SD2 else count


def check_options(detected: DetectedModel, options: ModelOptions, prompts: PromptOptions) -> Iterator[UserError | str]:
    """Options that contradict the model, models that cannot be trained, and warnings of what it does not say."""
    source = detected.source
    if options.v2 and not detected.is_v2:
        yield UserError(f"--v2 was given, but {source} is Stable Diffusion 1.x", "leave out --v2")
    yield from _prediction_warnings(detected, options)
    schedule = detected.scheduler.get("beta_schedule", SCHEDULES[0])
    if detected.scheduler.get("trained_betas") is None and schedule not in SCHEDULES:
        yield UserError(f"{source}: beta_schedule {schedule!r} is not known", f"known are {' and '.join(SCHEDULES)}")
    latents = detected.latent_channels
    if detected.unet_channels and latents and options.vae is None and {*detected.unet_channels} != {latents}:
        yield channels_error(source, detected.unet_channels, latents)
    skip, num_layers = prompts.clip_skip, detected.num_text_layers
    if skip is not None and num_layers is not None and skip > num_layers:
        yield UserError(
            f"--clip_skip {skip}: the text encoder of {source} has {num_layers} layers", f"give {num_layers} or less"
        )
    elif detected.is_v2 and skip is not None and skip > 1:
        yield (
            f"--clip_skip {skip} counts from the penultimate layer, which SD 2.x uses by default; such models are"
            " normally used without clip skip"
        )


def _prediction_warnings(detected: DetectedModel, options: ModelOptions) -> Iterator[str]:
    if options.v_parameterization and detected.prediction_type == EPSILON:
        yield (
            f"{detected.source} says that it predicts noise (epsilon): with --v_parameterization it is trained and"
            " saved as a v-prediction model; leave the flag out unless you want to turn it into one"
        )
    if not options.v_parameterization and detected.prediction_type is None and detected.is_v2:
        yield (
            f"{detected.source} does not say what it predicts, noise (epsilon) is assumed; SD 2.x 768 needs"
            " --v_parameterization"
        )
