"""The model of a run: loaded, on its device, and with what is trained attached to it."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator

from library.cli.parser import Options
from library.data.batches.plan import TrainingData
from library.diffusion.noise_schedule import NoiseSchedule
from library.diffusion.options import LossOptions, NoiseOptions
from library.diffusion.validation_rules import check_objective
from library.models.family import ModelFamily
from library.models.options import MemoryOptions, ModelOptions, PromptOptions
from library.models.registry import load_family
from library.training.checkpoints.states import read_state
from library.training.devices import place_method, place_model
from library.training.inputs.text_outputs import warn_long_captions
from library.training.method import TrainingMethod
from library.training.optimization.optimizers import check_rates
from library.training.optimization.options import OptimizerOptions
from library.training.options import TrainingOptions
from library.training.run_setup import RunSetup


def load_model(options: Options, method: TrainingMethod, accelerator: Accelerator) -> ModelFamily:
    """The model on the device, frozen parts in the compute precision. Raises `UserError` where options do not fit."""
    training, memory, device = options[TrainingOptions], options[MemoryOptions], accelerator.device
    family = load_family(options[ModelOptions], options[PromptOptions], device if memory.lowram else "cpu")
    noise = options[NoiseOptions]
    if noise.zero_terminal_snr:
        family.rescale_to_zero_terminal_snr()
    schedule = NoiseSchedule(family.alphas_cumprod())
    check_objective(noise, options[LossOptions], family.prediction_type, schedule)
    place_model(family, method, training, memory, device)
    family.apply_memory_options(memory, device)
    if training.gradient_checkpointing:
        family.enable_gradient_checkpointing()
    return family


def attach_method(
    options: Options, method: TrainingMethod, family: ModelFamily, data: TrainingData, run: RunSetup
) -> None:
    """Attaches what is trained to the model, and moves it to the device.

    Raises `UserError` for a method or learning rates that do not fit, before hours are spent on caches.
    """
    training, optimizing, memory = options[TrainingOptions], options[OptimizerOptions], options[MemoryOptions]
    method.attach(
        family,
        seed=run.plan.seed,
        default_learning_rate=optimizing.learning_rate,
        checkpointing=training.gradient_checkpointing,
    )
    if run.accelerator.is_main_process:  # now that it is known how many tokens an embedding has
        warn_long_captions(data, family, options[PromptOptions].max_token_length)
    check_rates(optimizing, method.param_groups())
    place_method(method, run.accelerator.device, training)
    if memory.compiles:
        family.compile(memory.dynamo_backend)


def restore_weights(method: TrainingMethod, folder: str) -> dict[str, Any]:
    """Gives a state's weights to the trained parameters, before these are sharded; returns the rest of the state."""
    weights, training = read_state(folder)
    method.load_state_dict(weights)
    return training
