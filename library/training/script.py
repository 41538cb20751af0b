"""What the training scripts have in common: options, checks, and the way from a command line into the loop."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from library.cli.checks import find_errors
from library.cli.errors import Stopped, UserError, raise_together
from library.cli.launcher import launch_command
from library.cli.logging import append_lines_to, set_console_level
from library.cli.options import OptionGroup, secret_flags
from library.cli.parser import Options, read_options
from library.data.config.options import CachingOptions, DatasetOptions, InpaintingOptions
from library.dataset_report.options import ReportOptions
from library.diffusion.options import LossOptions, NoiseOptions
from library.models.options import MemoryOptions, MetadataOptions, ModelOptions, PromptOptions
from library.training.checkpoints.options import HubOptions, OutputOptions
from library.training.context import Context, TrainingScript
from library.training.distributed.options import ProcessOptions
from library.training.evaluation.options import SampleOptions, ValidationOptions
from library.training.foreign_options import FOREIGN_OPTIONS
from library.training.monitoring.options import LoggingOptions
from library.training.optimization.options import AverageOptions, OptimizerOptions
from library.training.options import TrainingOptions
from library.training.preflight import CHECKS, IMAGE_CHECKS, PREFLIGHT_STAGES, screen

_OF_IMAGES: tuple[type[OptionGroup], ...] = (
    DatasetOptions, CachingOptions, InpaintingOptions, ValidationOptions, ReportOptions,
)  # fmt: skip


def option_groups(
    method_options: type[OptionGroup],
    *,
    prompt_options: type[OptionGroup] = PromptOptions,
    learns_from_images: bool = True,
) -> tuple[type[OptionGroup], ...]:
    """The groups of a training script, in the order of `--help`; `method_options` say what is trained."""
    groups: tuple[type[OptionGroup], ...] = (
        ModelOptions,
        prompt_options,
        MemoryOptions,
        DatasetOptions,
        CachingOptions,
        InpaintingOptions,
        OutputOptions,
        HubOptions,
        MetadataOptions,
        method_options,
        TrainingOptions,
        ProcessOptions,
        OptimizerOptions,
        NoiseOptions,
        LossOptions,
        AverageOptions,
        ValidationOptions,
        SampleOptions,
        LoggingOptions,
        ReportOptions,
    )
    return groups if learns_from_images else tuple(group for group in groups if group not in _OF_IMAGES)


def run_script(script: TrainingScript, argv: Sequence[str]) -> None:
    """Trains as a command line says. Raises `UserError` for what its user can mend."""
    start = launch_command()
    context = check_command(script, argv)
    # heavy imports only now: --help and mistakes are answered without them
    if not context.trains:
        _look_at_data(context)
        return
    from library.models.light_imports import import_diffusers

    import_diffusers()
    from library.training.devices import determinism_errors
    from library.training.distributed.processes import process_errors
    from library.training.loop.run_command import RunCommand
    from library.training.loop.run_page import RunPage
    from library.training.monitoring.out_of_memory import memory_errors
    from library.training.run import run_training

    try:
        with (
            RunPage(RunCommand(context, start, argv)) as page,
            process_errors(),
            memory_errors(context.options, context.sharding),
            determinism_errors(),
        ):
            run_training(context, page)
    except Stopped as stopped:
        raise Stopped(stopped.signal_number, stopped.state, secret_flags(script.option_groups)) from None


def check_command(script: TrainingScript, argv: Sequence[str]) -> Context:
    """Reads a command line and runs all checks that need no torch. Raises `UserError` with everything they find."""
    errors_of_console: list[UserError] = []

    def begin(given: Options) -> None:
        errors_of_console.extend(_set_up_console(given))
        screen(given)

    options, errors = read_options(
        argv,
        script.option_groups,
        program=script.program,
        description=script.description,
        screen=begin,
        foreign=FOREIGN_OPTIONS,
    )
    errors += errors_of_console
    context, checks = (
        Context(script, options),
        (*CHECKS, *(IMAGE_CHECKS if script.offers_datasets else ()), *script.checks),
    )
    for stage in PREFLIGHT_STAGES:
        errors += find_errors(checks, stage, context)
    raise_together(errors)
    return context


def _set_up_console(options: Options) -> list[UserError]:
    """Sets up the console as `--console_log_level` and `--console_log_file` say."""
    logs = options[LoggingOptions]
    if logs.console_log_level is not None:
        set_console_level(logging.getLevelName(logs.console_log_level))
    try:
        if logs.console_log_file is not None:
            append_lines_to(logs.console_log_file)
    except UserError as error:
        return [error]
    return []


def _look_at_data(context: Context) -> None:
    """Shows the data as a run of these options would draw it."""
    from library.data.images.inpaint_masks import MaskShares
    from library.dataset_report.report import look_at_data
    from library.dataset_report.sampled_items import DrawSettings
    from library.training.run_setup import make_step_plan

    training, output, report = context[TrainingOptions], context[OutputOptions], context[ReportOptions]
    masks = MaskShares(context[InpaintingOptions].mask_shares) if context.inpaints else None
    data, warnings = context.images, context.data_and_warnings[1]
    seed = training.seed if context.state is None else context.state.header.seed
    plan = make_step_plan(training, output, seed=seed or 0, num_micro_batches=data.num_micro_batches, num_processes=1)
    look_at_data(
        context.options,
        data,
        warnings,
        DrawSettings(plan.seed, seed is not None, plan.clock, masks),
        num_epochs=plan.num_epochs,
        folder=Path(report.debug_dataset_dir or Path(output.output_dir or ".") / "dataset"),
    )
