"""A training run, from options to the last line: puts the parts together and lets the trainer work."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from library.cli.parser import Options
from library.data.batches.loader import BatchDataset, BatchLoader
from library.data.batches.plan import TrainingData
from library.data.config.options import CachingOptions, DatasetOptions
from library.data.records import StepCounter
from library.diffusion.noise_schedule import NoiseSchedule
from library.diffusion.options import LossOptions, NoiseOptions
from library.diffusion.validation_rules import check_objective
from library.models.family import ModelFamily
from library.models.options import MemoryOptions, ModelOptions, PromptOptions
from library.models.registry import load_family
from library.training.checkpoints.metadata import Metadata
from library.training.checkpoints.options import HubOptions, OutputOptions
from library.training.checkpoints.saves import Saver
from library.training.checkpoints.states import read_state
from library.training.checkpoints.uploads import Uploads, make_uploads
from library.training.devices import check_memory_options, make_accelerator, place_method, place_model
from library.training.distributed.options import ProcessOptions
from library.training.distributed.processes import check_same_run
from library.training.distributed.strategy import all_params, make_strategy
from library.training.evaluation.options import SampleOptions, ValidationOptions
from library.training.evaluation.samples import Sampler
from library.training.evaluation.validation import VALIDATION_SEED, Validator
from library.training.inputs.latents import LatentProvider
from library.training.inputs.text_outputs import TextSource, check_text_caching, warn_long_captions
from library.training.method import ParamGroup, TrainingMethod
from library.training.monitoring.options import LoggingOptions
from library.training.monitoring.trackers import make_tracker
from library.training.objective import Objective
from library.training.optimization.ema import WeightEMA
from library.training.optimization.fused_backward import check_fused_backward, step_in_backward
from library.training.optimization.lr_schedules import make_lr_schedule
from library.training.optimization.optimizers import check_optimizer, check_rates, make_optimizer
from library.training.optimization.options import AverageOptions, OptimizerOptions
from library.training.options import TrainingOptions
from library.training.preflight import PreflightResult
from library.training.run_setup import RunSetup, set_up_run
from library.training.trainer import Trainer, TrainerOptions, TrainerParts

logger = logging.getLogger(__name__)


def run_training(options: Options, preflight: PreflightResult, method: TrainingMethod) -> None:
    """Trains `method` on the model that the options name. Raises `UserError` for what the user can mend."""
    training = options[TrainingOptions]
    accelerator = make_accelerator(
        training.mixed_precision,
        full=training.full_fp16,
        timeout_minutes=options[ProcessOptions].ddp_timeout,
    )
    if not accelerator.is_main_process:
        logging.getLogger().setLevel(logging.WARNING)
    state = preflight.state
    check_same_run(accelerator, options, preflight.data, 0 if state is None else state.position.global_step)
    check_memory_options(options[MemoryOptions], accelerator)
    check_fused_backward(training, accelerator.num_processes)
    check_optimizer(options[OptimizerOptions], accelerator.device)
    run_setup = set_up_run(options, preflight.data, state, accelerator)
    check_text_caching(options[CachingOptions], preflight.data, method.trains_text_encoders)
    uploads = make_uploads(options[HubOptions], accelerator.num_processes) if accelerator.is_main_process else None
    family = _load(options, accelerator, method)
    method.attach(
        family,
        seed=run_setup.plan.seed,
        default_learning_rate=options[OptimizerOptions].learning_rate,
        checkpointing=training.gradient_checkpointing,
    )
    if accelerator.is_main_process:  # when it is known how many tokens a new word has
        warn_long_captions(preflight.data, family, options[PromptOptions].max_token_length)
    check_rates(options[OptimizerOptions], method.param_groups())  # before hours are spent on caches
    place_method(method, accelerator.device, training)
    if options[MemoryOptions].compiles:
        family.compile(options[MemoryOptions].dynamo_backend)
    saved = None if state is None else _restore_weights(method, state.folder)
    trainer, parts, log_folder = _assemble(options, preflight, method, family, accelerator, run_setup, uploads)
    if saved is not None:
        trainer.resume(saved, state.folder)
    trainer.start_at(run_setup.start)
    if accelerator.is_main_process:
        parts.saver.remove_unfinished()
    try:
        trainer.run()
    finally:  # the curve of a run that ends early is wanted most
        if parts.tracker is not None:
            parts.tracker.close()
        parts.saver.finish_uploads()
    if accelerator.is_main_process:
        _say_what_was_written(parts, options, method, log_folder)
        parts.saver.raise_failures()
    accelerator.end_training()


def _restore_weights(method: TrainingMethod, folder: str) -> dict[str, Any]:
    """Gives a state's weights to what learns, before that is shared out; returns the rest of the state."""
    weights, training = read_state(folder)
    method.load_state_dict(weights)
    return training


def _load(options: Options, accelerator: Accelerator, method: TrainingMethod) -> ModelFamily:
    """The model on the device."""
    training, memory = options[TrainingOptions], options[MemoryOptions]
    device = accelerator.device
    family = load_family(options[ModelOptions], options[PromptOptions], device if memory.lowram else "cpu")
    noise = options[NoiseOptions]
    if noise.zero_terminal_snr:
        family.rescale_to_zero_terminal_snr()
    schedule = NoiseSchedule(family.alphas_cumprod())
    check_objective(noise, options[LossOptions], family.prediction_type, schedule)
    place_model(family, method, training, memory, device)
    family.apply_memory_options(memory, device)
    if training.gradient_checkpointing:
        family.enable_gradient_checkpointing()
    return family


def _assemble(
    options: Options,
    preflight: PreflightResult,
    method: TrainingMethod,
    family: ModelFamily,
    accelerator: Accelerator,
    run_setup: RunSetup,
    uploads: Uploads | None,
) -> tuple[Trainer, TrainerParts, Path | None]:
    output, data, plan = options[OutputOptions], preflight.data, run_setup.plan
    objective, loader_of = _make_inputs(options, data, method, family, accelerator)
    modules = [family.unet, *family.text_encoders, family.vae, *method.trainable_modules()]
    training, skipped_updates = options[TrainingOptions], None
    strategy = make_strategy(
        preflight.sharding,
        accelerator,
        method,
        lambda groups: make_optimizer(options[OptimizerOptions], groups),
        training,
    )
    if training.fused_backward_pass:
        skipped_updates = step_in_backward(strategy.optimizer, training.max_grad_norm)
    logs = options[LoggingOptions]
    tracker = make_tracker(logs.tracker, logs.logging_dir, logs.log_prefix) if accelerator.is_main_process else None
    sampler = Sampler(
        family,
        modules,
        preflight.prompts,
        folder=Path(output.output_dir) / "sample",
        name=output.output_name,
        sampler=options[SampleOptions].sampler,
        seed=plan.seed,
        writes=accelerator.is_main_process,
    )
    parts = TrainerParts(
        accelerator=accelerator,
        family=family,
        method=method,
        data=data,
        loader=loader_of(data, plan.seed, plan.clock),
        objective=objective,
        plan=plan,
        facts=run_setup.facts,
        strategy=strategy,
        average=_make_average(options[AverageOptions], strategy.groups),
        validator=_make_validator(options[ValidationOptions], data, objective, loader_of, accelerator, modules),
        skipped_updates=skipped_updates,
        lr_schedule=make_lr_schedule(strategy.optimizer, options[OptimizerOptions], plan.num_steps),
        saver=Saver(output, method, plan.epochs_between_saves, uploads),
        sampler=sampler if preflight.prompts else None,
        tracker=tracker[0] if tracker else None,
        metadata=Metadata(options, data, family, method, plan, strategy.optimizer),
    )
    trainer = Trainer(parts, TrainerOptions(training, output, options[SampleOptions], options[ValidationOptions]))
    return trainer, parts, tracker[1] if tracker else None


LoaderOf = Callable[[TrainingData, int, StepCounter], BatchLoader]  # data, seed of its items, clock


def _make_inputs(
    options: Options,
    data: TrainingData,
    method: TrainingMethod,
    family: ModelFamily,
    accelerator: Accelerator,
) -> tuple[Objective, LoaderOf]:
    """Fills the caches; gives the way from a batch to its loss, and what makes the loader of some data."""
    caching, loss, skips_unreadable = (
        options[CachingOptions],
        options[LossOptions],
        options[DatasetOptions].skip_bad_images,
    )
    latents = LatentProvider(family, caching, accelerator, skips_unreadable)
    unreadable = latents.fill_caches(data)
    if caching.caches_latents and not options[MemoryOptions].highvram and accelerator.device.type != "cpu":
        family.offload_vae()
    texts = TextSource(family, caching, accelerator, method.trains_text_encoders)
    texts.fill_cache(data)

    def loader_of(data: TrainingData, seed: int, clock: StepCounter) -> BatchLoader:
        dataset = BatchDataset(
            data,
            seed=seed,
            clock=clock,
            latent_source=latents.kind,
            fingerprint=latents.fingerprint if caching.cache_latents_to_disk else "",
            prior_loss_weight=loss.prior_loss_weight,
            skip_bad_images=skips_unreadable,
            unreadable=unreadable,
        )
        return BatchLoader(dataset, caching.max_data_loader_n_workers, caching.persistent_data_loader_workers)

    return Objective(family, latents, texts, accelerator, options[NoiseOptions], loss), loader_of


def _make_average(options: AverageOptions, groups: Sequence[ParamGroup]) -> WeightEMA | None:
    return WeightEMA(all_params(groups), options) if options.ema else None


def _make_validator(
    options: ValidationOptions,
    data: TrainingData,
    objective: Objective,
    loader_of: LoaderOf,
    accelerator: Accelerator,
    modules: Sequence[nn.Module],
) -> Validator | None:
    if data.validation is None:
        return None
    clock = StepCounter(group_size=1, steps_per_epoch=data.validation.num_micro_batches, num_steps=1)
    return Validator(
        objective,
        loader_of(data.validation, VALIDATION_SEED, clock),
        data.validation,
        accelerator,
        modules=modules,
        max_batches=options.max_validation_steps,
    )


def _say_what_was_written(
    parts: TrainerParts, options: Options, method: TrainingMethod, log_folder: Path | None
) -> None:
    output = options[OutputOptions]
    lines = ["", "Written:", *(f"  {path}" for path in parts.saver.written)]
    if parts.sampler is not None:
        lines.append(f"  {Path(output.output_dir) / 'sample'} (sample images)")
    if log_folder is not None:
        lines.append(f"  {log_folder} (curves; tensorboard --logdir {options[LoggingOptions].logging_dir} shows them)")
    if parts.saver.last_result is not None:
        lines += ["Next:", f"  {method.usage_hint(parts.saver.last_result)}"]
    state = parts.saver.state_folder("")
    if state in parts.saver.written:
        lines.append(f"  or go on: the same command with --resume {state} and more --max_train_steps")
    for line in lines:
        logger.info("%s", line)
