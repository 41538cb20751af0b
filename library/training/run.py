"""A training run, from options to the last line."""

from __future__ import annotations

from library.cli.parser import Options
from library.training.loop.outputs import make_outputs
from library.training.loop.step import make_step
from library.training.loop.trainer import Trainer
from library.training.method import TrainingMethod
from library.training.model_setup import attach_method, load_model, restore_weights
from library.training.objective import make_inputs
from library.training.preflight import PreflightResult
from library.training.run_setup import start_run


def run_training(options: Options, preflight: PreflightResult, method: TrainingMethod) -> None:
    """Trains `method` on the model that the options name. Raises `UserError` for what the user can mend."""
    run, data = start_run(options, preflight), preflight.data
    family = load_model(options, method, run.accelerator)
    attach_method(options, method, family, data, run)
    saved = None if run.state is None else restore_weights(method, run.state.folder)
    inputs = make_inputs(options, data, method, family, run.accelerator)
    step = make_step(options, preflight.sharding, method, inputs.objective, run)
    outputs = make_outputs(options, preflight, method=method, family=family, step=step, inputs=inputs, run=run)
    if saved is not None and run.state is not None:
        step.load(saved, run.state.folder)
    Trainer(
        run.accelerator,
        data,
        loader=inputs.loader_of(data, run.plan.seed, run.plan.clock),
        plan=run.plan,
        family=family,
        method=method,
        step=step,
        outputs=outputs,
    ).run(run.start)
    outputs.report()
    run.accelerator.end_training()
