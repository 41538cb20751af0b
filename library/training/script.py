"""What the training scripts have in common: options, checks, and the way from a command line into the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from library.cli.errors import Stopped
from library.cli.options import OptionGroup, Problems, secret_flags
from library.cli.parser import Options, parse_options
from library.data.config.config import Source
from library.data.config.options import CachingOptions, DatasetOptions
from library.dataset_report.options import ReportOptions
from library.diffusion.options import LossOptions, NoiseOptions
from library.models.options import MemoryOptions, MetadataOptions, ModelOptions, PromptOptions
from library.training.checkpoints.options import HubOptions, OutputOptions
from library.training.distributed.options import ProcessOptions
from library.training.evaluation.options import SampleOptions, ValidationOptions
from library.training.foreign_options import FOREIGN_OPTIONS
from library.training.monitoring.options import LoggingOptions
from library.training.optimization.options import AverageOptions, OptimizerOptions
from library.training.options import TrainingOptions
from library.training.preflight import AdaptData, CheckSharding, MethodOptions, Preflight, PreflightResult

if TYPE_CHECKING:
    from library.training.method import TrainingMethod


@dataclass(frozen=True)
class TrainingScript:
    """What is a script's own.

    `method_options`: the group of `option_groups` that says what is trained. `make_method` is called when the options
    are valid, and may import what is heavy only then. `data_source`: what must describe all images, folders or metadata
    files; None for either. `ending_of`: of the files of a run; empty for folders. `adapt_data`: gives the data as the
    method wants it. `check_sharding`: what of the method cannot be sharded; None where it is too small to be.
    """

    program: str
    description: str
    option_groups: tuple[type[OptionGroup], ...]
    method_options: type[MethodOptions]
    make_method: Callable[[Options], TrainingMethod]
    checks: Sequence[Callable[[Options], Problems]] = ()
    data_source: Source | None = None
    ending_of: Callable[[Options], str] = lambda options: ".safetensors"
    adapt_data: AdaptData | None = None
    check_sharding: CheckSharding | None = None


def option_groups(
    method_options: type[OptionGroup], *, prompt_options: type[OptionGroup] = PromptOptions
) -> tuple[type[OptionGroup], ...]:
    """The groups of a training script, in the order of `--help`; `method_options` say what is trained."""
    return (
        ModelOptions,
        prompt_options,
        MemoryOptions,
        DatasetOptions,
        CachingOptions,
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


def run_script(script: TrainingScript, argv: Sequence[str]) -> None:
    """Trains as a command line says. Raises `UserError` for what its user can mend."""
    preflight = Preflight(
        script.data_source,
        ending_of=script.ending_of,
        adapt_data=script.adapt_data,
        check_sharding=script.check_sharding,
        method_options=script.method_options,
    )
    options = parse_options(
        argv,
        script.option_groups,
        program=script.program,
        description=script.description,
        checks=[*preflight.checks(), *script.checks],
        screen=preflight.screen,
        foreign=FOREIGN_OPTIONS,
    )
    # heavy imports only now: --help and mistakes are answered without them
    if options[ReportOptions].replaces_training:
        _look_at_data(options, preflight.result())
        return
    from library.training.distributed.processes import process_errors
    from library.training.monitoring.out_of_memory import memory_errors
    from library.training.run import run_training

    result = preflight.result()
    try:
        with process_errors(), memory_errors(options, result.sharding):
            run_training(options, result, script.make_method(options))
    except Stopped as stopped:
        raise Stopped(stopped.signal_number, stopped.state, secret_flags(script.option_groups)) from None


def _look_at_data(options: Options, preflight: PreflightResult) -> None:
    """Shows the data as a run of these options would draw it."""
    from library.dataset_report.report import look_at_data
    from library.dataset_report.sampled_items import DrawSettings
    from library.training.run_setup import make_step_plan

    training, output, report = options[TrainingOptions], options[OutputOptions], options[ReportOptions]
    data, seed = preflight.data, training.seed if preflight.state is None else preflight.state.header.seed
    plan = make_step_plan(training, output, seed=seed or 0, num_micro_batches=data.num_micro_batches, num_processes=1)
    look_at_data(
        options,
        data,
        preflight.data_warnings,
        DrawSettings(plan.seed, seed is not None, plan.clock),
        num_epochs=plan.num_epochs,
        folder=Path(report.debug_dataset_dir or Path(output.output_dir or ".") / "dataset"),
    )
