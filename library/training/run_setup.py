"""What a run is going to do, before a model is loaded: its seed, its steps, where it begins, what its states say."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator

from library.cli.errors import UserError
from library.cli.logging import set_console_level
from library.cli.parser import Options
from library.training.checkpoints.options import HubOptions, OutputOptions
from library.training.checkpoints.resuming import FoundState, differences, option_values
from library.training.checkpoints.states import RunIdentity
from library.training.checkpoints.uploads import Uploads, make_uploads
from library.training.context import Context
from library.training.devices import make_accelerator, set_numerics
from library.training.distributed.options import ProcessOptions
from library.training.distributed.processes import check_same_run
from library.training.inputs.run_data import RunData
from library.training.optimization.lr_schedules import schedule_kind
from library.training.optimization.optimizers import optimizer_class_path
from library.training.optimization.options import OptimizerOptions
from library.training.options import TrainingOptions, random_seed
from library.training.step_plan import Position, StepPlan

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSetup:
    """Device and processes, the steps of a run and the position where it begins, and what its states belong to.

    `context`: the options, and what was read of the files that they name. `uploads`: to the Hub, of the first process,
    where saves are uploaded.
    """

    context: Context
    accelerator: Accelerator
    plan: StepPlan
    start: Position
    identity: RunIdentity
    uploads: Uploads | None = None

    @property
    def options(self) -> Options:
        return self.context.options

    @property
    def state(self) -> FoundState | None:
        """The state to resume from."""
        return self.context.state


def set_up_run(context: Context) -> RunSetup:
    """Starts the processes and plans the run; no model is loaded yet.

    Raises `UserError` for what the device does not support, and where the processes disagree.
    """
    options = context.options
    training = options[TrainingOptions]
    accelerator = make_accelerator(
        training.mixed_precision, full=training.full_fp16, timeout_minutes=options[ProcessOptions].ddp_timeout
    )
    set_numerics(training, accelerator.device)
    if not accelerator.is_main_process:
        set_console_level(logging.WARNING)
    state = context.state
    check_same_run(accelerator, options, context.data, 0 if state is None else state.position.global_step)
    return _plan_run(context, accelerator)


def start_run(run: RunSetup) -> RunSetup:
    """Says what the run is going to do, and connects to the Hub where saves are uploaded."""
    data, precision = run.context.data, run.options[TrainingOptions].mixed_precision
    logger.info(
        "device %s, %s, optimizer %s",
        _device_name(run.accelerator.device),
        "float32" if precision == "no" else f"mixed precision {precision}",
        run.options[OptimizerOptions].optimizer,
    )
    for line in data.plan_lines(run.plan):
        logger.info("%s", line)
    if run.context.sharding is not None and run.context.sharding.substitution() is not None:
        logger.info("%s", run.context.sharding.substitution())
    if run.start.global_step:
        logger.info("resuming after step %d, in epoch %d", run.start.global_step, run.start.epoch + 1)
    if run.state is not None:
        for line in differences(run.state.header, run.options, run.identity.versions, run.identity.data):
            logger.warning("--resume: %s", line)
    is_first = run.accelerator.is_main_process
    writes = is_first and not run.options[TrainingOptions].dry_run
    uploads = make_uploads(run.options[HubOptions], run.accelerator.num_processes) if writes else None
    return replace(run, uploads=uploads)


def _device_name(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _plan_run(context: Context, accelerator: Accelerator) -> RunSetup:
    options, data, state, output = context.options, context.data, context.state, context.options[OutputOptions]
    saved = Position() if state is None else state.position
    plan = make_step_plan(
        options[TrainingOptions],
        output,
        seed=_choose_seed(options[TrainingOptions], state, accelerator),
        num_micro_batches=data.num_micro_batches,
        num_processes=accelerator.num_processes,
        start=saved if output.initial_step is None and output.initial_epoch is None else Position(),
    )
    start = first_position(output, plan, saved)
    return RunSetup(context, accelerator, plan, start, _identity_of(options, data, plan))


def _identity_of(options: Options, data: RunData, plan: StepPlan) -> RunIdentity:
    return RunIdentity(
        seed=plan.seed,
        num_micro_batches=plan.num_micro_batches,
        group_size=plan.group_size,
        optimizer=optimizer_class_path(options[OptimizerOptions]),
        lr_schedule=schedule_kind(options[OptimizerOptions]),
        data=data.digest(),
        options=option_values(options),
    )


def _choose_seed(training: TrainingOptions, state: FoundState | None, accelerator: Accelerator) -> int:
    """The seed given, or the resumed state's, or one drawn by the first process and logged."""
    if state is not None:
        return state.header.seed
    if training.seed is not None:
        return training.seed
    drawn = torch.tensor(random_seed(), device=accelerator.device)
    if accelerator.num_processes > 1:
        drawn = accelerator.reduce(drawn if accelerator.is_main_process else torch.zeros_like(drawn), reduction="sum")
    logger.info("seed %d (give --seed to repeat this run)", int(drawn))
    return int(drawn)


def make_step_plan(
    options: TrainingOptions,
    output: OutputOptions,
    *,
    seed: int,
    num_micro_batches: int,
    num_processes: int,
    start: Position = Position(),  # noqa: B008 - it is frozen
) -> StepPlan:
    """The plan that the options ask for; `--max_train_epochs` wins over `--max_train_steps`.

    `--save_n_epoch_ratio` wins over `--save_every_n_epochs`. Epochs and steps before `start` count as they were made:
    with another accumulation or number of images they may have had another number of steps.
    """
    steps_per_epoch = math.ceil(num_micro_batches / (options.gradient_accumulation_steps * num_processes))
    offset = start.global_step - start.step_in_epoch - start.epoch * steps_per_epoch
    if options.max_train_epochs is not None:
        num_epochs = options.max_train_epochs
        num_steps = offset + num_epochs * steps_per_epoch
    else:
        num_steps = options.max_train_steps
        num_epochs = math.ceil((num_steps - offset) / steps_per_epoch)
    epochs_between = output.save_every_n_epochs
    if output.save_n_epoch_ratio is not None:
        epochs_between = max(1, num_epochs // output.save_n_epoch_ratio)
    return StepPlan(
        seed=seed,
        num_micro_batches=num_micro_batches,
        accumulation=options.gradient_accumulation_steps,
        num_processes=num_processes,
        num_steps=num_steps,
        num_epochs=num_epochs,
        epochs_between_saves=epochs_between,
        offset=offset,
    )


def first_position(output: OutputOptions, plan: StepPlan, saved: Position) -> Position:
    """Where the run begins: at `saved`, unless `--initial_step` or `--initial_epoch` say otherwise.

    Raises `UserError` when that is behind the end of the run.
    """
    if output.initial_step is not None:
        flag, step = "--initial_step", output.initial_step
    elif output.initial_epoch is not None:
        flag, step = "--initial_epoch", (output.initial_epoch - 1) * plan.steps_per_epoch
    else:
        return saved
    if step >= plan.num_steps:
        raise UserError(
            f"{flag} begins behind step {step}, and the run has {plan.num_steps}",
            hint=f"lower {flag}, or raise --max_train_steps or --max_train_epochs",
        )
    epoch, step_in_epoch = divmod(step, plan.steps_per_epoch)
    if not output.skip_until_initial_step:
        step_in_epoch = 0
    return Position(epoch, step_in_epoch, epoch * plan.steps_per_epoch + step_in_epoch)
