"""The model of a run: loaded, on its device, and with what is trained attached to it."""

from __future__ import annotations

import logging
from typing import Any

from library.models.family import ModelFamily
from library.models.options import ModelOptions, PromptOptions
from library.models.registry import load_family
from library.training.checkpoints.states import read_state
from library.training.devices import load_settings, place_method
from library.training.method import TrainingMethod
from library.training.optimization.options import OptimizerOptions
from library.training.options import TrainingOptions
from library.training.run_setup import RunSetup

logger = logging.getLogger(__name__)


def load_model(run: RunSetup, method: TrainingMethod) -> ModelFamily:
    """The model, frozen, on the device of the run. Raises `UserError` where it cannot be loaded."""
    return load_family(
        run.options[ModelOptions],
        run.options[PromptOptions],
        load_settings(run.options, method, run.accelerator.device),
        run.context.model,
    )


def attach_method(run: RunSetup, method: TrainingMethod, family: ModelFamily) -> None:
    """Attaches what is trained to the model, and moves it to the device. Raises `UserError` where it does not fit."""
    training = run.options[TrainingOptions]
    method.attach(
        family,
        seed=run.plan.seed,
        default_learning_rate=run.options[OptimizerOptions].learning_rate,
        checkpointing=training.gradient_checkpointing,
    )
    place_method(method, run.accelerator.device, training)
    for group in method.param_groups():
        count = sum(param.numel() for param in group.params)
        logger.info("trains %s: %s parameters at learning rate %g", group.name, f"{count:,}", group.learning_rate)


def restore_weights(run: RunSetup, method: TrainingMethod) -> dict[str, Any] | None:
    """Gives the weights of the state to resume from to the trained parameters, before these are sharded.

    Returns the rest of the state; None for a new run.
    """
    if run.state is None:
        return None
    weights, training = read_state(run.state.folder)
    method.load_state_dict(weights)
    return training


def set_training_mode(family: ModelFamily, method: TrainingMethod) -> None:
    """Dropout and gradient checkpointing where gradients flow."""
    for module in [family.unet, *method.trainable_modules()]:
        module.train()
    for encoder in family.text_encoders:
        encoder.train(method.trains_text_encoders)
