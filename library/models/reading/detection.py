"""What the small files of a model with a U-Net and CLIP text encoders say, and options that contradict it. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from library.cli.checks import Findings
from library.cli.errors import UserError, raise_together
from library.diffusion.options import LossOptions, NoiseOptions
from library.diffusion.validation_rules import ScheduleShape, objective_findings
from library.models.layouts.model_layout import (
    EPSILON,
    NUM_TIMESTEPS,
    SCHEDULES,
    V_PREDICTION,
    ModelLayout,
    channels_error,
    fits_latents,
    takes_masks,
)
from library.models.layouts.stored_configs import read_stated_scheduler
from library.models.options import ModelOptions
from library.models.weights.model_files import ModelFolder, TensorFile
from library.models.weights.model_kinds import UNET_PREFIX, VAE_PREFIX

_PREDICTION_NAMES = {"epsilon": EPSILON, "eps": EPSILON, "v": V_PREDICTION, "v_prediction": V_PREDICTION}
_SCHEDULER_CONFIG = "scheduler/scheduler_config.json"


@dataclass(frozen=True)
class DetectedModel:
    """What a model's small files say; None where they do not say it. `scheduler`: entries of its configuration.

    `layout`: what its files look like. `unet_channels`: what the U-Net takes and gives. `num_text_layers`: of the text
    encoder that `--clip_skip` counts in, those that are used.
    """

    source: str
    layout: ModelLayout
    prediction_type: str | None
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    num_text_layers: int | None = None
    unet_channels: tuple[int, int] | None = None
    latent_channels: int | None = None

    @property
    def is_inpainting(self) -> bool:
        """Whether the U-Net takes a mask and the masked image; False where small files do not show its channels."""
        return self.unet_channels is not None and takes_masks(self.unet_channels)

    @property
    def title(self) -> str:
        """What messages call models of its kind: "Stable Diffusion 2.x"."""
        return self.layout.title

    def predicts(self, options: ModelOptions) -> str:
        """The prediction type for training and saving: v where the flag or the model says so, else epsilon.

        (A noise-prediction model can be trained to predict v.)
        """
        return V_PREDICTION if options.v_parameterization else self.prediction_type or EPSILON

    def objective_findings(self, options: ModelOptions, noise: NoiseOptions, loss: LossOptions) -> Findings:
        """Noise and loss options that the model does not allow."""
        return objective_findings(noise, loss, self.predicts(options), self.schedule_shape(noise))

    def schedule_shape(self, noise: NoiseOptions) -> ScheduleShape:
        """Length and end of the noise schedule that is trained on."""
        betas = self.scheduler.get("trained_betas")
        betas = betas if isinstance(betas, list) else []
        length = len(betas) or positive_int(self.scheduler.get("num_train_timesteps")) or NUM_TIMESTEPS
        is_rescaled = noise.zero_terminal_snr or bool(self.scheduler.get("rescale_betas_zero_snr"))
        return ScheduleShape(length, ends_in_noise=is_rescaled or 1 in betas)


def read_configs(folder: ModelFolder, parts: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """The config.json of each part of a folder; a VAE may be missing. Raises `UserError` for damaged ones."""
    configs, errors = {}, []
    for part in parts:
        if part == "vae" and not folder.has("vae/config.json"):
            continue  # --vae may give another
        try:
            configs[part] = folder.read_json(f"{part}/config.json")
        except UserError as error:
            errors.append(error)
    raise_together(errors)
    return configs


def detect_in_folder(
    folder: ModelFolder, layout: ModelLayout, configs: Mapping[str, Mapping[str, Any]]
) -> DetectedModel:
    """What the configurations of a Diffusers folder say. Raises `UserError` for a prediction type that is not known."""
    text, unet, vae = configs[layout.text_encoders[0].name], configs["unet"], configs.get("vae")
    scheduler = folder.read_json(_SCHEDULER_CONFIG) if folder.has(_SCHEDULER_CONFIG) else {}
    declared = scheduler.get("prediction_type")
    if declared is not None and declared not in _PREDICTION_NAMES:
        raise UserError(
            f"{folder.path / _SCHEDULER_CONFIG}: prediction_type is {declared!r}", "known are epsilon and v_prediction"
        )
    return DetectedModel(
        str(folder.path),
        layout,
        prediction_type=None if declared is None else _PREDICTION_NAMES[declared],
        scheduler=scheduler,
        num_text_layers=positive_int(text.get("num_hidden_layers")),
        unet_channels=(positive_int(unet.get("in_channels")) or 4, positive_int(unet.get("out_channels")) or 4),
        latent_channels=None if vae is None else positive_int(vae.get("latent_channels")) or 4,
    )


def detect_in_file(file: TensorFile, layout: ModelLayout, num_text_layers: int | None) -> DetectedModel:
    """What the metadata and the shapes of a single file say."""
    stated = read_stated_scheduler(file.metadata, str(file.path))
    marked = {entry: value for key, (entry, value) in layout.marks.items() if key in file.tensors}
    scheduler = {**stated, **marked}
    declared = V_PREDICTION if "v_pred" in file.tensors else None
    for value in (stated.get("prediction_type"), file.metadata.get("modelspec.prediction_type")):
        declared = _PREDICTION_NAMES.get(str(value), declared)
    # marks are what image programs go by; metadata may be that of a model that this one was made from
    declared = _PREDICTION_NAMES.get(str(marked.get("prediction_type")), declared)
    taken = _size(file, f"{UNET_PREFIX}input_blocks.0.0.weight", 1)
    given = _size(file, f"{UNET_PREFIX}out.2.weight", 0)
    return DetectedModel(
        str(file.path),
        layout,
        declared,
        scheduler,
        num_text_layers=num_text_layers,
        unet_channels=None if taken is None or given is None else (taken, given),
        latent_channels=_size(file, f"{VAE_PREFIX}decoder.conv_in.weight", 1),
    )


def positive_int(value: Any) -> int | None:
    """A number of a configuration; None for what is none, which is reported when the model is built."""
    return value if type(value) is int and value > 0 else None


def _size(file: TensorFile, key: str, dimension: int) -> int | None:
    shape = tuple(file.tensors[key].shape) if key in file.tensors else ()
    return shape[dimension] if len(shape) > dimension else None


def check_model(detected: DetectedModel, options: ModelOptions) -> Iterator[UserError | str]:
    """Models that cannot be trained, and options that contradict what a model says that it predicts."""
    source = detected.source
    if options.v_parameterization and detected.prediction_type == EPSILON:
        yield (
            f"{source} says that it predicts noise (epsilon): with --v_parameterization it is trained and"
            " saved as a v-prediction model; leave the flag out unless you want to turn it into one"
        )
    schedule = detected.scheduler.get("beta_schedule", SCHEDULES[0])
    if detected.scheduler.get("trained_betas") is None and schedule not in SCHEDULES:
        yield UserError(f"{source}: beta_schedule {schedule!r} is not known", f"known are {' and '.join(SCHEDULES)}")
    latents = detected.latent_channels
    unet = detected.unet_channels
    if unet and latents and options.vae is None and not fits_latents(unet, latents):
        yield channels_error(source, unet, latents)
