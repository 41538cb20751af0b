"""Checks of full fine-tuning before anything is loaded. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from library.cli.checks import Check, Findings
from library.cli.errors import UserError
from library.cli.parser import Options
from library.data.config.options import CachingOptions, DatasetOptions
from library.methods.options import WholeModelOptions
from library.models.families import block_rates_problem
from library.models.layouts.formats import FORMATS, choose_format, target_problem
from library.models.options import MemoryOptions, ModelOptions, PromptOptions
from library.training.checkpoints.options import OutputOptions
from library.training.context import Context
from library.training.evaluation.options import SampleOptions
from library.training.monitoring.options import LoggingOptions


def chosen_format(options: Options) -> str:
    """The format that models are saved in, a key of `FORMATS`."""
    chosen = options[WholeModelOptions]
    source = options[ModelOptions].pretrained_model_name_or_path or ""
    return choose_format(chosen.save_model_as, use_safetensors=chosen.use_safetensors, source=source)


def chosen_ending(options: Options) -> str:
    """The ending of saved models; empty where they are folders."""
    return FORMATS[chosen_format(options)].ending


def _padding(context: Context) -> Findings:
    if context[CachingOptions].caches_text_encoder_outputs and context[PromptOptions].no_token_padding:
        yield UserError(
            "--cache_text_encoder_outputs with --no_token_padding: cached outputs would have different lengths",
            hint="leave one of them out",
        )


def _float8(context: Context) -> Findings:
    memory = context[MemoryOptions]
    if memory.keeps_fp8_unet:
        flag = "--fp8_base" if memory.fp8_base else "--fp8_base_unet"
        yield f"{flag} does nothing: it stores a frozen U-Net in fp8, and here the U-Net is trained"


def _sharding(context: Context) -> Findings:
    """Options that cannot be combined with sharding (FSDP)."""
    stops_at = context[WholeModelOptions].text_encoder_stops_at
    if context.sharding is not None and stops_at is not None:
        yield UserError(
            f"{context.sharding.flag} with --stop_text_encoder_training {stops_at}: sharded parameters are trained to"
            " the end",
            hint="leave one of them out, or give --stop_text_encoder_training -1",
        )


def _block_rates(context: Context) -> Findings:
    """`--block_lr` with another model than it is for."""
    rates, family = context[WholeModelOptions].block_lr, context.family if context.trains else None
    problem = block_rates_problem(family, len(rates)) if rates and family is not None else None
    if problem is not None:
        yield problem


def _target(context: Context) -> Findings:
    """Where the model cannot be saved: checked at the start, not after hours of training."""
    options = context.options
    if not context.trains or options[OutputOptions].output_dir is None:
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


CHECKS: tuple[Check[Context], ...] = (
    Check("options", _padding),
    Check("options", _float8),
    Check("options", _sharding),
    Check("options", _block_rates),
    Check("options", _target),
)
