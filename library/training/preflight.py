"""What is looked at before anything is loaded: files that options name, the data, the state to resume from."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from library.cli.errors import UserError, listed
from library.cli.foreign_options import OtherFamily
from library.cli.logging import Message, kept_warnings
from library.cli.options import Problems
from library.cli.parser import Options
from library.data.config.options import CachingOptions, DatasetOptions
from library.dataset_report.options import ReportOptions
from library.diffusion.options import LossOptions
from library.models.options import MemoryOptions, ModelOptions
from library.models.weights.path_checks import FLAG as MODEL_FLAG
from library.models.weights.path_checks import model_problems, other_family
from library.training.checkpoints.hub_upload import hub_problems, read_hub_state
from library.training.checkpoints.options import HubOptions, OutputOptions
from library.training.checkpoints.resuming import AUTO, FoundState, continuing_problems, newest_state, read_whole_state
from library.training.checkpoints.saved_names import saved_under
from library.training.distributed.options import ProcessOptions
from library.training.distributed.sharding_config import (
    ShardingConfig,
    sharding_config,
    sharding_problems,
    without_effect,
)
from library.training.evaluation.options import SampleOptions, ValidationOptions
from library.training.evaluation.prompts import SamplePrompt, read_prompt_file
from library.training.monitoring.options import LoggingOptions
from library.training.optimization.fused_backward import fused_backward_problems
from library.training.optimization.optimizer_table import averages_itself
from library.training.optimization.options import AverageOptions, OptimizerOptions
from library.training.options import TrainingOptions

if TYPE_CHECKING:
    from library.data.batches.plan import TrainingData
    from library.data.config.config import Source

logger = logging.getLogger(__name__)

AdaptData = Callable[[Options, "TrainingData"], "TrainingData"]
CheckSharding = Callable[[Options, ShardingConfig], Problems]


class MethodOptions(Protocol):
    """What the options of a method say, beside what only the method reads."""

    HOW_TO_FREEZE: ClassVar[str]  # what freezes the text encoder, for messages; empty where nothing does

    @property
    def trains_text_encoder(self) -> bool:
        """Whether gradients flow through the text encoder."""


@dataclass(frozen=True)
class PreflightResult:
    """What the checks have read already."""

    data: TrainingData
    prompts: list[SamplePrompt]
    state: FoundState | None
    data_warnings: tuple[Message, ...] = ()  # that were logged while the data was read
    sharding: ShardingConfig | None = None  # how trained parameters are sharded over the processes


class Preflight:
    """Checks for `parse_options`; keeps what they read. Nothing here imports torch."""

    def __init__(
        self,
        data_source: Source | None = None,
        *,
        ending_of: Callable[[Options], str],
        adapt_data: AdaptData | None = None,
        check_sharding: CheckSharding | None = None,
        method_options: type[MethodOptions],
    ):
        """`data_source`: what must describe all images, folders or metadata files; None for either.

        `ending_of`: of the files that a run writes. `adapt_data`: gives the data as a method wants it, and raises
        `UserError` for data that it cannot use. `check_sharding`: what of a method cannot be
        sharded; None where it is too small to be. `method_options`: the group that says what is trained.
        """
        self._data_source = data_source
        self._ending_of = ending_of
        self._adapt_data = adapt_data
        self._data: TrainingData | None = None
        self._check_sharding = check_sharding
        self._method_options = method_options
        self._sharding: ShardingConfig | None = None
        self._prompts: list[SamplePrompt] = []
        self._state: FoundState | None = None
        self._data_warnings: tuple[Message, ...] = ()

    def checks(self) -> list[Callable[[Options], Problems]]:
        return [
            self._check_model,
            self._check_text_caching,
            self._check_processes,
            self._check_objective,
            self._check_folders,
            self._check_report,
            self._check_prompts,
            lambda options: hub_problems(options[HubOptions], options[OutputOptions]),
            self._check_state,
            self._check_earlier_run,
            self._check_average,
            lambda options: fused_backward_problems(options[TrainingOptions], options[OptimizerOptions]),
            self._check_data,
        ]

    def result(self) -> PreflightResult:
        assert self._data is not None, "parse_options runs the checks"
        return PreflightResult(self._data, self._prompts, self._state, self._data_warnings, self._sharding)

    def screen(self, options: Options) -> None:
        """Raises `OtherFamily` where the model is of a family that is not trained: all other errors would mislead."""
        path = options[ModelOptions].pretrained_model_name_or_path
        family = None if path is None or options[ReportOptions].replaces_training else other_family(path)
        if family is not None:
            raise OtherFamily(
                f"{MODEL_FLAG} {path} is a {family} model: this program trains Stable Diffusion 1.x and 2.x",
                hint="give a Stable Diffusion 1.x or 2.x model",
            )

    def _check_model(self, options: Options) -> Problems:
        if options[ReportOptions].replaces_training:
            return ()
        memory = options[MemoryOptions]
        if memory.xformers and not memory.mem_eff_attn and importlib.util.find_spec("xformers") is None:
            logger.warning("--xformers: the package xformers is not installed; PyTorch's own attention is used")
        return model_problems(options[ModelOptions])

    def _check_text_caching(self, options: Options) -> Problems:
        """A text encoder that is trained says something else after every step. (For captions: `caching_problems`.)"""
        method = options[self._method_options]
        if options[CachingOptions].caches_text_encoder_outputs and method.trains_text_encoder:
            instead = f", or train the U-Net alone, {method.HOW_TO_FREEZE}" if method.HOW_TO_FREEZE else ""
            yield UserError(
                "--cache_text_encoder_outputs: the text encoder is trained, so its outputs change",
                hint=f"leave it out{instead}",
            )

    def _check_processes(self, options: Options) -> Problems:
        if options[ReportOptions].replaces_training:
            return
        processes, training = options[ProcessOptions], options[TrainingOptions]
        config = sharding_config(processes, os.environ)
        for line in without_effect(processes, os.environ, training):
            logger.warning("%s", line)
        if config is None:
            return
        if self._check_sharding is not None:
            compiles = options[MemoryOptions].compiles
            yield from sharding_problems(config, training, options[OptimizerOptions], compiles)
            yield from self._check_sharding(options, config)
            self._sharding = config
        elif config.zero_stage in (1, 2):  # for such a run other programs keep the weights whole
            logger.warning("%s does nothing: the trained parameters are few, every process holds a copy", config.flag)
        else:
            yield UserError(
                f"{config.flag} would shard the weights, which are frozen here: every process has a copy",
                hint="leave it out, or give --zero_stage 2; several processes divide the batches anyway",
            )

    def _check_objective(self, options: Options) -> Problems:
        loss = options[LossOptions]
        if loss.v_pred_like_loss and options[ModelOptions].v_parameterization:
            yield UserError(
                "--v_pred_like_loss is for models that predict noise, --v_parameterization for those that predict v",
                hint="leave out one of the two",
            )

    def _check_data(self, options: Options) -> Problems:
        from library.data.load_data import load_training_data  # NumPy and Pillow are not for --help

        described = options[DatasetOptions]
        if options[ReportOptions].replaces_training:  # bad images are what the user wants to see
            described = replace(described, skip_bad_images=True)
        with kept_warnings() as warnings:
            self._data = load_training_data(described, options.get(CachingOptions), only=self._data_source)
            if self._adapt_data is not None:
                self._data = self._adapt_data(options, self._data)
        self._data_warnings = tuple(warnings)
        if not options[ReportOptions].replaces_training:
            _warn_useless_weights(self._data, options.get(LossOptions))
        validation = options.get(ValidationOptions)
        if self._data.validation is None and validation is not None and validation.is_enabled:
            logger.warning(
                "no validation loss is measured: no images are held out for it (--validation_split 0.1, or"
                " validation_split in the dataset file)"
            )
        elif self._data.validation is None and described.validation_seed:
            logger.warning("--validation_seed does nothing: no images are held out (--validation_split)")
        return ()

    def _check_report(self, options: Options) -> Problems:
        report, output_dir = options[ReportOptions], options[OutputOptions].output_dir
        if report.debug_dataset and report.debug_dataset_dir is None and output_dir is None:
            yield UserError(
                "--debug_dataset has no folder for its page", hint="give --debug_dataset_dir or --output_dir FOLDER"
            )
        yield from folder_problems("--debug_dataset_dir", report.debug_dataset_dir)

    def _check_prompts(self, options: Options) -> Problems:
        samples = options[SampleOptions]
        path = samples.sample_prompts
        if path is None:
            return ()
        if Path(path).suffix.lower() in (".toml", ".json"):
            logger.warning("--sample_prompts %s: not implemented yet for such files; no images are generated", path)
            return ()
        try:
            self._prompts = read_prompt_file(path)
        except UserError as error:
            if samples.draws_during_training:
                raise
            # front ends name a file whether it is there or not
            logger.warning("no sample images are generated: %s", error.message)
        return ()

    def _check_folders(self, options: Options) -> Problems:
        yield from folder_problems("--output_dir", options[OutputOptions].output_dir)
        yield from folder_problems("--logging_dir", options[LoggingOptions].logging_dir)

    def _check_average(self, options: Options) -> Problems:
        name = options[OptimizerOptions].optimizer
        if options[AverageOptions].ema and averages_itself(name):
            yield UserError(
                f"--ema with --optimizer_type {name}, whose weights are an average already", hint="leave --ema out"
            )

    def _check_state(self, options: Options) -> Problems:
        output, seed = options[OutputOptions], options[TrainingOptions].seed
        if output.resume is None:
            return
        if options[HubOptions].resume_from_huggingface:
            self._state = read_hub_state(output.resume, options[HubOptions].huggingface_token)
        elif output.resume == AUTO:
            self._state = newest_state(output.output_dir or ".", output.output_name)
            logger.info(
                "--resume auto: %s",
                "a new run, as there is no state" if self._state is None else f"going on from {self._state.folder}",
            )
        else:
            self._state = read_whole_state(output.resume)
        if self._state is None:
            return
        header = self._state.header
        if seed is not None and seed != header.seed:
            yield UserError(
                f"--seed {seed} is not the seed of {self._state.folder}, which is {header.seed}",
                hint="leave --seed out to continue that run",
            )
        yield from continuing_problems(header, options)

    def _check_earlier_run(self, options: Options) -> Problems:
        """A new run would write over what an earlier one of its name has left."""
        output = options[OutputOptions]
        if output.resume is not None or output.overwrite or options[ReportOptions].replaces_training:
            return
        ending = self._ending_of(options)
        saved = saved_under(Path(output.output_dir or "."), output.output_name)
        found = [each.path.name for each in saved if each.is_state or each.ending == ending]
        if found:
            yield UserError(
                f"--output_dir {output.output_dir} holds an earlier run's {listed(found, 3)}",
                hint="choose another --output_name, give --overwrite, or go on with --resume auto",
            )


def _warn_useless_weights(data: TrainingData, loss: LossOptions | None) -> None:
    subsets = [subset for dataset in data.datasets for subset in dataset.config.subsets]
    if loss is not None and loss.masked_loss and not any(subset.has_masks for subset in subsets):
        logger.warning(
            "--masked_loss does nothing: no images have masks, which alpha_mask or conditioning_data_dir in the"
            " dataset file make"
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
