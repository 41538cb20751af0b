"""Checks of full fine-tuning before anything is loaded. Imports no torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from library.cli.errors import UserError
from library.cli.options import Problems
from library.cli.parser import Options
from library.data.config.options import CachingOptions, DatasetOptions
from library.dataset_report.options import ReportOptions
from library.methods.options import WholeModelOptions
from library.models.layouts.formats import FORMATS, choose_format, target_problem
from library.models.options import MemoryOptions, ModelOptions, PromptOptions
from library.training.checkpoints.options import OutputOptions
from library.training.distributed.sharding_config import ShardingConfig
from library.training.evaluation.options import SampleOptions
from library.training.monitoring.options import LoggingOptions

logger = logging.getLogger(__name__)


def whole_model_checks() -> list[Callable[[Options], Problems]]:
    """Checks for `parse_options`, beside those of `Preflight`."""
    return [_check_padding, _check_float8, _check_target]


def chosen_format(options: Options) -> str:
    """The format that models are saved in, a key of `FORMATS`."""
    chosen = options[WholeModelOptions]
    source = options[ModelOptions].pretrained_model_name_or_path or ""
    return choose_format(chosen.save_model_as, use_safetensors=chosen.use_safetensors, source=source)


def chosen_ending(options: Options) -> str:
    """The ending of saved models; empty where they are folders."""
    return FORMATS[chosen_format(options)].ending


def _check_padding(options: Options) -> Problems:
    if options[CachingOptions].caches_text_encoder_outputs and options[PromptOptions].no_token_padding:
        yield UserError(
            "--cache_text_encoder_outputs with --no_token_padding: cached outputs would have different lengths",
            hint="leave one of them out",
        )


def _check_float8(options: Options) -> Problems:
    memory = options[MemoryOptions]
    if memory.keeps_fp8_unet:
        logger.warning(
            "--fp8_base%s does nothing: it stores a frozen U-Net in fp8, and here the U-Net is trained",
            "" if memory.fp8_base else "_unet",
        )
    return ()


def check_sharding(options: Options, plan: ShardingConfig) -> Problems:
    """Options that cannot be combined with sharding (FSDP)."""
    stops_at = options[WholeModelOptions].text_encoder_stops_at
    if stops_at is not None:
        yield UserError(
            f"{plan.flag} with --stop_text_encoder_training {stops_at}: sharded parameters are trained to the end",
            hint="leave one of them out, or give --stop_text_encoder_training -1",
        )


def _check_target(options: Options) -> Problems:
    """Where the model cannot be saved: checked at the start, not after hours of training."""
    if options[ReportOptions].replaces_training or options[OutputOptions].output_dir is None:
        return
    output, format = options[OutputOptions], chosen_format(options)
    target = Path(output.output_dir or ".") / f"{output.name}{FORMATS[format].ending}"
    problem = target_problem(target, format)
    if problem is not None:
        yield UserError(
            f"the model cannot be saved: {problem.message}", hint="choose another --output_dir or --output_name"
        )
        return
    for flag, path in _paths_in_use(options):
        used = Path(path).resolve()
        if target.resolve() in (used, *used.parents):
            yield UserError(
                f"{flag} {path} would be replaced by the saved model, {target}",
                hint="choose another --output_dir or --output_name",
            )


def _paths_in_use(options: Options) -> Iterator[tuple[str, str]]:
    model, data, output = options[ModelOptions], options[DatasetOptions], options[OutputOptions]
    paths = {
        "--pretrained_model_name_or_path": model.pretrained_model_name_or_path,
        "--vae": model.vae,
        "--train_data_dir": data.train_data_dir,
        "--reg_data_dir": data.reg_data_dir,
        "--in_json": data.in_json,
        "--dataset_config": data.dataset_config,
        "--logging_dir": options[LoggingOptions].logging_dir,
        "--resume": output.resume,
    }
    yield from ((flag, path) for flag, path in paths.items() if path is not None)
    if options[SampleOptions].sample_prompts is not None:
        yield "the folder of sample images", str(Path(output.output_dir or ".") / "sample")
