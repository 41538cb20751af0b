"""What the training scripts have in common: options, checks, and the way from a command line into the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from library.cli.errors import Stopped
from library.cli.options import Problems, secret_flags
from library.cli.parser import Options, parse_options
from library.data.config import Source
from library.data.options import CachingOptions, DatasetOptions, ReportOptions
from library.diffusion.options import LossOptions, NoiseOptions
from library.models.options import MemoryOptions, MetadataOptions, ModelOptions, PromptOptions
from library.training.foreign_options import FOREIGN_OPTIONS
from library.training.monitoring.options import LoggingOptions
from library.training.options import (
    AverageOptions,
    HubOptions,
    OptimizerOptions,
    OutputOptions,
    SampleOptions,
    TrainingOptions,
    ValidationOptions,
)
from library.training.preflight import AdaptData, CheckSharding, Preflight
from library.training.process_options import ProcessOptions

if TYPE_CHECKING:
    from library.training.method import TrainingMethod


@dataclass(frozen=True)
class TrainingScript:
    """What is a script's own.

    `make_method` is called when the options are valid, and may import what is heavy only then. `data_source`: what
    must describe all pictures, folders or metadata files; None for either. `ending_of`: of the files of a run;
    empty for folders. `adapt_data`: gives the data as the method wants it. `check_sharding`: what does not go with what
    learns being shared out over processes; None where it is too small to be.
    """

    program: str
    description: str
    option_groups: tuple[type, ...]
    make_method: Callable[[Options], TrainingMethod]
    checks: Sequence[Callable[[Options], Problems]] = ()
    data_source: Source | None = None
    ending_of: Callable[[Options], str] = lambda options: ".safetensors"
    adapt_data: AdaptData | None = None
    check_sharding: CheckSharding | None = None


def option_groups(method_options: type, *, prompt_options: type = PromptOptions) -> tuple[type, ...]:
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
        from library.training.dataset_report import look_at_data

        look_at_data(options, preflight.result())
        return
    from library.training.out_of_memory import memory_errors
    from library.training.processes import process_errors
    from library.training.run import run_training

    result = preflight.result()
    try:
        with process_errors(), memory_errors(options, result.sharding):
            run_training(options, result, script.make_method(options))
    except Stopped as stopped:
        raise Stopped(stopped.signal_number, stopped.state, secret_flags(script.option_groups)) from None
