"""The metadata of saved files, which other programs show: how a file was trained.

Keys and formats are those that image programs read: all values are strings, `ss_*` describes the training,
`modelspec.*` follows the Stability AI model specification 1.0.0.
"""

from __future__ import annotations

import json
import secrets
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from library.cli.documents import valid_metadata
from library.cli.file_hashes import file_sha256, model_hash
from library.cli.parser import Options
from library.diffusion.options import LossOptions, NoiseOptions, timestep_range
from library.models.family import ModelFamily
from library.models.options import MemoryOptions, MetadataOptions, ModelOptions, PromptOptions
from library.models.weights.modelspec import SpecifiedModel, specification_entries
from library.training.checkpoints.options import OutputOptions
from library.training.evaluation.options import validation_options
from library.training.inputs.run_data import RunData
from library.training.method import TrainingMethod
from library.training.optimization.lr_schedules import schedule_name, warmup_steps
from library.training.optimization.optimizers import optimizer_label
from library.training.optimization.options import AverageOptions, OptimizerOptions
from library.training.options import TrainingOptions
from library.training.step_plan import Position, StepPlan

# what image programs need to load a file; the only entries with --no_metadata
MINIMUM = (
    "ss_v2",
    "ss_base_model_version",
    "ss_network_module",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_network_args",
)


class Metadata:
    """The metadata entries of one run; `at` adds those that change from save to save."""

    def __init__(
        self,
        options: Options,
        data: RunData,
        family: ModelFamily,
        method: TrainingMethod,
        plan: StepPlan,
        optimizer: torch.optim.Optimizer,
    ):
        self._options, self._data, self._family, self._method = options, data, family, method
        self._plan, self._optimizer = plan, optimizer
        self._started_at = time.time()

    @cached_property
    def _fixed(self) -> dict[str, str]:
        # computed at the first save: it hashes the whole model file
        options = self._options
        entries = {
            **_model_entries(options, self._family),
            **_option_entries(options, self._plan, self._optimizer),
            **_texts(self._data.metadata(self._plan.group_size)),
            **_plan_entries(self._plan),
            **_evaluation_entries(options),
            **self._method.metadata(),
            "ss_training_started_at": str(self._started_at),
        }
        return valid_metadata(entries)

    def at(self, position: Position) -> dict[str, str]:
        """The entries of a file saved at `position`."""
        entries = {
            **self._fixed,
            "ss_epoch": str(position.epoch + (position.step_in_epoch > 0)),
            "ss_steps": str(position.global_step),
            "ss_training_finished_at": str(time.time()),
        }
        if self._options[OutputOptions].no_metadata:
            entries = {key: value for key, value in entries.items() if key in MINIMUM}
        specification = _specification_entries(self._options, self._data, self._family, self._method)
        # valid for networks of other packages too, which write their files themselves
        return valid_metadata({**entries, **specification})


def _texts(entries: dict[str, Any]) -> dict[str, str]:
    return {key: json.dumps(value) if isinstance(value, (dict, list)) else str(value) for key, value in entries.items()}


def _model_entries(options: Options, family: ModelFamily) -> dict[str, str]:
    models, has_hashes = options[ModelOptions], not options[OutputOptions].no_metadata
    return _texts(
        {
            **_name_and_hashes(models.pretrained_model_name_or_path, "sd_model", has_hashes),
            **_name_and_hashes(models.vae, "vae", has_hashes),
            "ss_v2": family.version.startswith("sd_v2"),
            "ss_base_model_version": family.version,
            **({"ss_inpainting": "true"} if family.takes_masks else {}),
        }
    )


def _name_and_hashes(given: str | None, what: str, has_hashes: bool) -> dict[str, str]:
    """Name and hashes of a model file; only the name for a folder or a name on the Hub."""
    if given is None:
        return {}
    path = Path(given)
    name = path.name if path.exists() else given
    if not (has_hashes and path.is_file()):
        return {f"ss_{what}_name": name}
    hashes = {f"ss_{what}_hash": model_hash(path), f"ss_new_{what}_hash": file_sha256(path)}
    return {f"ss_{what}_name": name, **hashes}


def _option_entries(options: Options, plan: StepPlan, optimizer: torch.optim.Optimizer) -> dict[str, str]:
    training, rates = options[TrainingOptions], options[OptimizerOptions]
    output, memory, prompts = options[OutputOptions], options[MemoryOptions], options[PromptOptions]
    return _texts(
        {
            "ss_session_id": secrets.randbelow(2**32),
            "ss_output_name": output.name,
            "ss_training_comment": output.training_comment,
            "ss_learning_rate": rates.learning_rate,
            "ss_lr_scheduler": schedule_name(rates),
            "ss_lr_warmup_steps": warmup_steps(rates, plan.num_steps),
            "ss_optimizer": optimizer_label(optimizer, rates),
            "ss_mixed_precision": training.mixed_precision,
            "ss_full_fp16": training.full_fp16,
            "ss_fp8_base": memory.keeps_fp8_unet,
            "ss_lowram": memory.lowram,
            "ss_clip_skip": prompts.clip_skip,
            "ss_max_token_length": prompts.max_token_length,
            "ss_gradient_checkpointing": training.gradient_checkpointing,
            "ss_gradient_accumulation_steps": training.gradient_accumulation_steps,
            "ss_max_grad_norm": training.max_grad_norm,
            "ss_max_train_steps": plan.num_steps,
            "ss_seed": plan.seed,
            **_objective_entries(options[NoiseOptions], options[LossOptions]),
        }
    )


def _objective_entries(noise: NoiseOptions, loss: LossOptions) -> dict[str, Any]:
    return {
        "ss_noise_offset": noise.noise_offset,
        "ss_noise_offset_random_strength": noise.noise_offset_random_strength,
        "ss_adaptive_noise_scale": noise.adaptive_noise_scale,
        "ss_multires_noise_iterations": noise.multires_noise_iterations,
        "ss_multires_noise_discount": noise.multires_noise_discount,
        "ss_ip_noise_gamma": noise.ip_noise_gamma,
        "ss_ip_noise_gamma_random_strength": noise.ip_noise_gamma_random_strength,
        "ss_zero_terminal_snr": noise.zero_terminal_snr,
        "ss_loss_type": loss.loss_type,
        "ss_huber_schedule": loss.huber_schedule,
        "ss_huber_c": loss.huber_c,
        "ss_huber_scale": loss.huber_scale,
        "ss_min_snr_gamma": loss.min_snr_gamma,
        "ss_debiased_estimation": loss.debiased_estimation_loss,
        "ss_prior_loss_weight": loss.prior_loss_weight,
    }


def _timestep_range(noise: NoiseOptions, family: ModelFamily) -> tuple[int, int] | None:
    """The first and last trained timestep; None where all timesteps are trained."""
    num_timesteps = family.process.num_timesteps
    trained = timestep_range(noise, num_timesteps)
    return None if len(trained) == num_timesteps else (trained[0], trained[-1])


def _plan_entries(plan: StepPlan) -> dict[str, str]:
    return _texts(
        {
            "ss_num_batches_per_epoch": plan.num_micro_batches,
            "ss_num_epochs": plan.num_epochs,
        }
    )


def _evaluation_entries(options: Options) -> dict[str, str]:
    validation, average = validation_options(options), options[AverageOptions]
    return _texts(
        {
            "ss_validate_every_n_steps": validation.validate_every_n_steps,
            "ss_validate_every_n_epochs": validation.validate_every_n_epochs,
            "ss_max_validation_steps": validation.max_validation_steps,
            "ss_ema_decay": average.ema_decay if average.ema else None,
        }
    )


def _specification_entries(
    options: Options, data: RunData, family: ModelFamily, method: TrainingMethod
) -> dict[str, str]:
    return specification_entries(
        SpecifiedModel(
            architecture=family.architecture + method.architecture_suffix,
            prediction_type=family.process.prediction_type,
            resolution=data.resolution or (family.usual_size, family.usual_size),
            clip_skip=options[PromptOptions].clip_skip,
            timestep_range=_timestep_range(options[NoiseOptions], family),
        ),
        options[MetadataOptions],
        title=options[OutputOptions].name,
    )
