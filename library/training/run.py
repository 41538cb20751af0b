"""A training run, from checked options to the last line."""

from __future__ import annotations

import logging

from library.cli.checks import run_checks
from library.training.context import Context
from library.training.loop.dry_run import report_dry_run
from library.training.loop.outputs import make_outputs
from library.training.loop.planned_outputs import planned_lines
from library.training.loop.run_page import RunPage
from library.training.loop.step import make_step
from library.training.loop.trainer import Trainer
from library.training.model_setup import attach_method, load_model, restore_weights
from library.training.options import TrainingOptions
from library.training.run_checks import DEVICE_CHECKS, MODEL_CHECKS, LoadedModel
from library.training.run_setup import set_up_run, start_run

logger = logging.getLogger(__name__)


def run_training(context: Context, page: RunPage) -> None:
    """Trains what the script of `context` trains. Raises `UserError` for what the user can mend."""
    run = set_up_run(context)
    run_checks(DEVICE_CHECKS, "device", run)
    run, method = start_run(run), context.script.make_method(context.options)
    for line in planned_lines(run):
        logger.info("%s", line)
    page.begin(run)
    with page.phase("loading the model"):
        family = load_model(run, method)
        attach_method(run, method, family)
        page.attached(run, method, family)
        run_checks(MODEL_CHECKS, "model", LoadedModel(run, family, method))
        saved = restore_weights(run, method)
    if context[TrainingOptions].dry_run:
        report_dry_run(run, method, family)
        return
    with page.phase("caching"):
        inputs = context.data.make_inputs(method, family, run.accelerator, run.plan)
    step = make_step(run, method, inputs.objective)
    outputs = make_outputs(run, method, family, step, inputs, page)
    if saved is not None and run.state is not None:
        step.load(saved, run.state.folder)
    del saved  # as large as the optimizer
    trainer = Trainer(
        run.accelerator,
        context.data,
        loader=inputs.loader,
        plan=run.plan,
        family=family,
        method=method,
        step=step,
        outputs=outputs,
    )
    with page.phase("steps"):
        trainer.run(run.start)
    outputs.report()
    run.accelerator.end_training()
