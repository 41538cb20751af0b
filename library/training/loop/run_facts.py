"""What is trained on what, in words: the facts on a run's page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from library.cli.errors import plural
from library.models.family import ModelFamily
from library.models.options import ModelOptions
from library.run_report.record import Group
from library.training.method import TrainingMethod
from library.training.optimization.lr_schedules import schedule_name
from library.training.optimization.options import OptimizerOptions
from library.training.options import TrainingOptions
from library.training.run_setup import RunSetup

_MOST_GROUPS = 12


def data_facts(run: RunSetup) -> Iterator[Group]:
    """What is learnt from and the arithmetic of steps, known before a model is loaded."""
    plan = run.plan
    yield Group("Steps", [
        ("steps", f"{plan.num_steps:,}, of {plan.steps_per_epoch:,} per epoch, in {plural(plan.num_epochs, 'epoch')}"),
        ("a step", f"{plural(plan.accumulation, 'micro-batch', 'micro-batches')} of each of"
         f" {plural(plan.num_processes, 'process', 'processes')}"),
        ("seed", str(plan.seed)),
    ])  # fmt: skip
    yield from run.context.data.facts()


def model_facts(run: RunSetup, method: TrainingMethod, family: ModelFamily) -> Iterator[Group]:
    """The loaded model, and what of it is trained."""
    models, optimizing = run.options[ModelOptions], run.options[OptimizerOptions]
    base = str(models.pretrained_model_name_or_path)
    rows = [
        ("base model", Path(base).name or base),
        ("model type", f"{family.version}, {family.process.prediction_type}"),
    ]
    if models.vae is not None:
        rows.append(("VAE", Path(models.vae).name))
    yield Group("Model", rows)
    groups = method.param_groups()
    trained = [
        (group.name, f"{sum(param.numel() for param in group.params):,} parameters at {group.learning_rate:g}")
        for group in groups[:_MOST_GROUPS]
    ]
    if len(groups) > _MOST_GROUPS:
        trained.append(
            ("and", plural(len(groups) - _MOST_GROUPS, "more group of parameters", "more groups of parameters"))
        )
    yield Group("Trained", [
        *trained,
        ("optimizer", optimizing.optimizer),
        ("LR schedule", schedule_name(optimizing)),
        ("precision", run.options[TrainingOptions].mixed_precision),
        ("device", str(run.accelerator.device)),
    ])  # fmt: skip
