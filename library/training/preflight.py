"""What is looked at before anything is loaded: files that options name, the data, the state to resume from."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from library.cli.errors import UserError
from library.cli.options import Problems
from library.cli.parser import Options
from library.data.options import CachingOptions, DatasetOptions, ReportOptions
from library.data.report.messages import Message, kept_warnings
from library.models.options import MemoryOptions, ModelOptions
from library.models.path_checks import model_problems
from library.training.optimizer_table import averages_itself
from library.training.optimizers import optimizer_name
from library.training.options import (
    AverageOptions,
    LoggingOptions,
    OptimizerOptions,
    OutputOptions,
    SampleOptions,
    TrainingOptions,
    ValidationOptions,
)
from library.training.prompts import SamplePrompt, read_prompt_file
from library.training.states import StateHeader, read_state_header

if TYPE_CHECKING:
    from library.data.plan import TrainingData

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreflightResult:
    """What the checks have read already."""

    data: TrainingData
    prompts: list[SamplePrompt]
    state: StateHeader | None
    data_warnings: tuple[Message, ...] = ()  # that were logged while the data was read


class Preflight:
    """Checks for `parse_options`; keeps what they read. Nothing here imports torch."""

    def __init__(self, adapt_data: Callable[[Options, TrainingData], TrainingData] | None = None):
        """adapt_data: gives the data as a method wants it, and raises `UserError` for data that it cannot use."""
        self._adapt_data = adapt_data
        self._data: TrainingData | None = None
        self._prompts: list[SamplePrompt] = []
        self._state: StateHeader | None = None
        self._data_warnings: tuple[Message, ...] = ()

    def checks(self) -> list[Callable[[Options], Problems]]:
        return [
            self._check_model,
            self._check_folders,
            self._check_report,
            self._check_prompts,
            self._check_state,
            self._check_average,
            self._check_data,
        ]

    def result(self) -> PreflightResult:
        assert self._data is not None, "parse_options runs the checks"
        return PreflightResult(self._data, self._prompts, self._state, self._data_warnings)

    def _check_model(self, options: Options) -> Problems:
        if options[ReportOptions].replaces_training:
            return ()
        if options[MemoryOptions].xformers and importlib.util.find_spec("xformers") is None:
            logger.warning("--xformers: the package xformers is not installed; PyTorch's own attention is used")
        return model_problems(options[ModelOptions])

    def _check_data(self, options: Options) -> Problems:
        from library.data.prepare import load_training_data  # NumPy and Pillow are not for --help

        described = options[DatasetOptions]
        if options[ReportOptions].replaces_training:  # bad pictures are what the user wants to see
            described = replace(described, skip_bad_images=True)
        with kept_warnings() as warnings:
            self._data = load_training_data(described, options.get(CachingOptions))
            if self._adapt_data is not None:
                self._data = self._adapt_data(options, self._data)
        self._data_warnings = tuple(warnings)
        validation = options.get(ValidationOptions)
        if self._data.validation is None and validation is not None and validation.is_asked_for:
            yield UserError(
                "a validation loss is asked for, and no pictures are held out for it",
                hint="give --validation_split 0.1, or validation_split in the dataset file",
            )

    def _check_report(self, options: Options) -> Problems:
        report, output_dir = options[ReportOptions], options[OutputOptions].output_dir
        if report.debug_dataset and report.debug_dataset_dir is None and output_dir is None:
            yield UserError(
                "--debug_dataset has no folder for its page", hint="give --debug_dataset_dir or --output_dir FOLDER"
            )
        yield from folder_problems("--debug_dataset_dir", report.debug_dataset_dir)

    def _check_prompts(self, options: Options) -> Problems:
        path = options[SampleOptions].sample_prompts
        if path is not None:
            self._prompts = read_prompt_file(path)
        return ()

    def _check_folders(self, options: Options) -> Problems:
        yield from folder_problems("--output_dir", options[OutputOptions].output_dir)
        yield from folder_problems("--logging_dir", options[LoggingOptions].logging_dir)

    def _check_average(self, options: Options) -> Problems:
        name = optimizer_name(options[OptimizerOptions])
        if options[AverageOptions].ema and averages_itself(name):
            yield UserError(
                f"--ema with --optimizer_type {name}, whose weights are an average already", hint="leave --ema out"
            )

    def _check_state(self, options: Options) -> Problems:
        folder, seed = options[OutputOptions].resume, options[TrainingOptions].seed
        if folder is None:
            return
        self._state = read_state_header(folder)
        if seed is not None and seed != self._state.seed:
            yield UserError(
                f"--seed {seed} is not the seed of {folder}, which is {self._state.seed}",
                hint="leave --seed out to continue that run",
            )


def folder_problems(flag: str, folder: str | None) -> Problems:
    """Says beforehand when a folder could not be created or written to."""
    if folder is None:
        return
    path = Path(folder).absolute()
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    if not existing.is_dir():
        yield UserError(f"{flag} {folder}: {existing} is a file", hint="give the path of a folder")
    elif not os.access(existing, os.W_OK):
        yield UserError(f"{flag} {folder} cannot be written to", hint="choose another, or change its permissions")
