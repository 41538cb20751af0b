"""What a run is going to do, before a model is loaded: its seed, its steps, where it begins, what its states say."""

from __future__ import annotations

import logging
import math
import random
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator

from library.cli.errors import UserError
from library.cli.parser import Options
from library.data.batches.plan import TrainingData
from library.models.options import MemoryOptions
from library.training.checkpoints.options import HubOptions, OutputOptions
from library.training.checkpoints.resuming import FoundState, differences, option_values
from library.training.checkpoints.states import RunIdentity
from library.training.checkpoints.uploads import Uploads, make_uploads
from library.training.devices import check_memory_options, make_accelerator
from library.training.distributed.options import ProcessOptions
from library.training.distributed.processes import check_same_run
from library.training.optimization.ema import check_average
from library.training.optimization.fused_backward import check_fused_backward
from library.training.optimization.lr_schedules import check_lr_schedule, schedule_kind
from library.training.optimization.optimizers import check_optimizer, optimizer_class_path
from library.training.optimization.options import AverageOptions, OptimizerOptions
from library.training.options import TrainingOptions
from library.training.preflight import PreflightResult
from library.training.step_plan import Position, StepPlan

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSetup:
    """Device and processes, the steps of a run and the position where it begins, and what its states belong to.

    `uploads`: to the Hub, of the first process, where saves are uploaded.
    """

    accelerator: Accelerator
    plan: StepPlan
    start: Position
    state: FoundState | None
    identity: RunIdentity
    uploads: Uploads | None = None


def start_run(options: Options, preflight: PreflightResult) -> RunSetup:
    """Starts the processes, checks what needs a device, and plans the run; no model is loaded yet.

    Raises `UserError` for what the device, the optimizer or the resumed state does not allow.
    """
    training, memory = options[TrainingOptions], options[MemoryOptions]
    accelerator = make_accelerator(
        training.mixed_precision, full=training.full_fp16, timeout_minutes=options[ProcessOptions].ddp_timeout
    )
    if not accelerator.is_main_process:
        logging.getLogger().setLevel(logging.WARNING)
    if preflight.sharding is not None and preflight.sharding.substitution() is not None:
        logger.info("%s", preflight.sharding.substitution())
    state = preflight.state
    check_same_run(accelerator, options, preflight.data, 0 if state is None else state.position.global_step)
    check_memory_options(memory, accelerator)
    check_fused_backward(training, accelerator.num_processes)
    check_optimizer(options[OptimizerOptions], accelerator.device)
    run = _plan_run(options, preflight.data, state, accelerator)
    uploads = make_uploads(options[HubOptions], accelerator.num_processes) if accelerator.is_main_process else None
    return replace(run, uploads=uploads)


def _plan_run(options: Options, data: TrainingData, state: FoundState | None, accelerator: Accelerator) -> RunSetup:
    """Plans the run and says so, with what differs from that of `state`. Raises `UserError` for what does not fit."""
    for line in data.bucket_table():
        logger.info("%s", line)
    plan = make_step_plan(
        options[TrainingOptions],
        options[OutputOptions],
        seed=_choose_seed(options[TrainingOptions], state, accelerator),
        num_micro_batches=data.num_micro_batches,
        num_processes=accelerator.num_processes,
    )
    start = first_position(options[OutputOptions], plan, Position() if state is None else state.position)
    _check_state_fits(state, plan, start)
    logger.info("%s", _arithmetic(data, plan))
    if start.global_step:
        logger.info("going on after step %d, in epoch %d", start.global_step, start.epoch + 1)
    identity = _identity_of(options, data, plan)
    if state is not None:
        for line in differences(state.header, options, identity.versions, identity.data):
            logger.warning("--resume: %s", line)
    check_lr_schedule(options[OptimizerOptions], plan.num_steps)
    check_average(options[AverageOptions], plan.num_steps)
    return RunSetup(accelerator, plan, start, state, identity)


def _identity_of(options: Options, data: TrainingData, plan: StepPlan) -> RunIdentity:
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
    drawn = torch.tensor(random.SystemRandom().randrange(2**31), device=accelerator.device)
    if accelerator.num_processes > 1:
        drawn = accelerator.reduce(drawn if accelerator.is_main_process else torch.zeros_like(drawn), reduction="sum")
    logger.info("seed %d (give --seed to repeat this run)", int(drawn))
    return int(drawn)


def _check_state_fits(state: FoundState | None, plan: StepPlan, start: Position) -> None:
    """A position inside an epoch means something only in the same plan."""
    if state is None or start != state.position:
        return
    now = (plan.num_micro_batches, plan.group_size)
    then = (state.header.num_micro_batches, state.header.group_size)
    if start.step_in_epoch and now != then:
        raise UserError(
            f"--resume: an epoch of the saved run had {then[0]} batches, {then[1]} to a step; now {now[0]}, {now[1]}",
            hint="resume with the same data, batch size, accumulation and processes, or from a state saved"
            " at the end of an epoch",
        )
    if start.global_step > plan.num_steps:
        raise UserError(
            f"--resume: the saved run has done {start.global_step} steps, and {plan.num_steps} are asked for",
            hint="raise --max_train_steps or --max_train_epochs",
        )
    if start.global_step == plan.num_steps:  # its end may not have been saved
        logger.warning(
            "--resume: all %d steps are done; the result is saved, and nothing more is trained"
            " (--max_train_steps or --max_train_epochs ask for more)",
            plan.num_steps,
        )


def _arithmetic(data: TrainingData, plan: StepPlan) -> str:
    num_images = sum(len(dataset.used_record_indices) for dataset in data.datasets)
    num_buckets = sum(len(dataset.buckets) for dataset in data.datasets)
    sizes = " and ".join(str(size) for size in sorted({dataset.config.batch_size for dataset in data.datasets}))
    return (
        f"{num_images} images x repeats = {data.num_items} / batch {sizes} = {plan.num_micro_batches} batches"
        f" (in {num_buckets} buckets) / (accumulation {plan.accumulation} x processes {plan.num_processes})"
        f" = {plan.steps_per_epoch} steps per epoch x {plan.num_epochs} epochs; {plan.num_steps} steps in all"
    )


def make_step_plan(
    options: TrainingOptions, output: OutputOptions, *, seed: int, num_micro_batches: int, num_processes: int
) -> StepPlan:
    """The plan that the options ask for; `--max_train_epochs` wins over `--max_train_steps`.

    `--save_n_epoch_ratio` wins over `--save_every_n_epochs`.
    """
    steps_per_epoch = math.ceil(num_micro_batches / (options.gradient_accumulation_steps * num_processes))
    if options.max_train_epochs is not None:
        num_epochs = options.max_train_epochs
        num_steps = num_epochs * steps_per_epoch
    else:
        num_steps = options.max_train_steps
        num_epochs = math.ceil(num_steps / steps_per_epoch)
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
