"""The checks of a run before anything is loaded: options, the files that they name, the data. Imports no torch."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from library.cli.checks import Check, Findings, Stage
from library.cli.errors import UserError, listed
from library.cli.foreign_options import OtherFamily
from library.cli.parser import Options
from library.data.config.options import CachingOptions, DatasetOptions, InpaintingOptions
from library.dataset_report.options import ReportOptions
from library.diffusion.options import LossOptions, NoiseOptions
from library.diffusion.validation_rules import prediction_findings
from library.models.families import FamilyEntry, model_problems, other_family, trained_titles
from library.models.options import MemoryOptions, ModelOptions, PromptOptions
from library.models.weights.path_checks import FLAG as MODEL_FLAG
from library.training.checkpoints.hub_upload import hub_findings
from library.training.checkpoints.options import HubOptions, OutputOptions
from library.training.checkpoints.resuming import continuing_problems
from library.training.checkpoints.saved_names import saved_under
from library.training.context import Context, TrainingScript
from library.training.distributed.options import ProcessOptions
from library.training.distributed.sharding_config import process_findings, sharding_findings
from library.training.evaluation.options import SampleOptions, ValidationOptions
from library.training.evaluation.prompt_files import read_prompt_file
from library.training.monitoring.options import LoggingOptions
from library.training.optimization.fused_backward import fused_backward_findings
from library.training.optimization.optimizer_table import averages_itself, find_optimizer
from library.training.optimization.optimizers import needs_adafactor_schedule
from library.training.optimization.options import AverageOptions, OptimizerOptions
from library.training.options import TrainingOptions


def screen(options: Options) -> None:
    """Raises `OtherFamily` where the model is of a family that is not trained: all other errors would mislead."""
    path = options[ModelOptions].pretrained_model_name_or_path
    report = options.get(ReportOptions)
    trains = report is None or not report.replaces_training
    family = other_family(path) if path is not None and trains else None
    if family is not None:
        raise OtherFamily(
            f"{MODEL_FLAG} {path} is a {family} model: this program trains {trained_titles()}",
            hint="give a model of these families",
        )


def _model_files(context: Context) -> Findings:
    if not context.trains:
        return
    memory = context[MemoryOptions]
    if memory.xformers and not memory.mem_eff_attn and importlib.util.find_spec("xformers") is None:
        yield "--xformers: the package xformers is not installed; PyTorch's own attention is used"
    yield from model_problems(context[ModelOptions])


def family_findings(context: Context, family: FamilyEntry) -> Findings:
    """A model of another family than the script trains."""
    script = context.script
    if script.family is not None and family is not context.family:
        model = context[ModelOptions].pretrained_model_name_or_path
        others = script.program.removeprefix(f"{script.family}_")
        yield UserError(
            f"--pretrained_model_name_or_path {model} is {family.title}, which {script.program} does not train",
            hint="give a Stable Diffusion XL model, or train with"
            f" {'fine_tune.py or train_db.py' if others == 'train.py' else others}",
        )


def _model_options(context: Context) -> Findings:
    """Options that contradict the model. (Where small files do not show it, it is checked when it is loaded.)"""
    if context.model is not None:
        yield from family_findings(context, context.model.family)
        yield from context.model.check_options(context[ModelOptions], context[PromptOptions])


def _objective(context: Context) -> Findings:
    """Noise and loss against the model's prediction type and noise schedule."""
    options, noise, loss = context[ModelOptions], context[NoiseOptions], context[LossOptions]
    if context.model is not None:
        yield from context.model.detected.objective_findings(options, noise, loss)
    elif options.v_parameterization:  # the rest is checked when the model is loaded
        yield from prediction_findings(loss, "v_prediction")


def not_widened(script: TrainingScript, model: str | None) -> UserError:
    """The error for a model that takes no mask and is not trained as a whole."""
    return UserError(
        f"--train_inpainting: {model} takes no mask, and what {script.program} trains leaves its first layer as it is",
        hint="give an inpainting model (a U-Net of 9 channels), or make one of this model with"
        " train_db.py, fine_tune.py or sdxl_train.py --train_inpainting",
    )


MASKS_OF_LOSS = UserError(
    "--masked_loss takes masks as weights of the loss, for an inpainting model they are what is to be drawn",
    hint="leave out --masked_loss",
)


def _inpainting(context: Context) -> Findings:
    options, model = context[InpaintingOptions], context.model
    takes_no_mask = model is not None and model.detected.unet_channels is not None and not model.detected.is_inpainting
    if options.train_inpainting and takes_no_mask and not context.script.can_be_widened:
        yield not_widened(context.script, context[ModelOptions].pretrained_model_name_or_path)
    if context.inpaints and context[LossOptions].masked_loss:
        yield MASKS_OF_LOSS
    if context.trains and model is not None and options.shapes_masks and not context.inpaints:
        yield "--inpaint_full_rate and --inpaint_mask_shares do nothing: the model is not for inpainting"


def _text_caching(context: Context) -> Findings:
    """A text encoder that is trained gives other outputs after every step. (For captions: `caching_problems`.)"""
    method = context.method_options
    if context[CachingOptions].caches_text_encoder_outputs and method.trains_text_encoder:
        instead = f", or train the U-Net alone, {method.HOW_TO_FREEZE}" if method.HOW_TO_FREEZE else ""
        yield UserError(
            "--cache_text_encoder_outputs: the text encoder is trained, so its outputs change",
            hint=f"leave it out{instead}",
        )


def _processes(context: Context) -> Findings:
    processes, training = context[ProcessOptions], context[TrainingOptions]
    yield from process_findings(processes, os.environ, training)
    requested = context.requested_sharding
    if requested is None:
        return
    if context.sharding is not None:
        compiles = context[MemoryOptions].compiles
        yield from sharding_findings(requested, training, context[OptimizerOptions], compiles)
    elif requested.zero_stage in (1, 2):  # for such a run other programs keep the weights whole
        yield f"{requested.flag} does nothing: the trained parameters are few, every process holds a copy"
    else:
        yield UserError(
            f"{requested.flag} would shard the weights, which are frozen here: every process has a copy",
            hint="leave it out, or give --zero_stage 2; several processes divide the batches anyway",
        )


def _folders(context: Context) -> Findings:
    yield from folder_problems("--output_dir", context[OutputOptions].output_dir)
    yield from folder_problems("--logging_dir", context[LoggingOptions].logging_dir)


def _report(context: Context) -> Findings:
    report, output_dir = context[ReportOptions], context[OutputOptions].output_dir
    if report.debug_dataset and report.debug_dataset_dir is None and output_dir is None:
        yield UserError(
            "--debug_dataset has no folder for its page", hint="give --debug_dataset_dir or --output_dir FOLDER"
        )
    yield from folder_problems("--debug_dataset_dir", report.debug_dataset_dir)


def _prompts(context: Context) -> Findings:
    samples = context[SampleOptions]
    path = samples.sample_prompts
    if path is None:
        return
    if samples.draws_during_training:
        if any(prompt.image for prompt in context.prompts) and context.model is not None and not context.inpaints:
            yield f"--sample_prompts {path}: images (--i) do nothing, the model is not for inpainting"
    else:  # front ends name a file whether it is there or not
        try:
            read_prompt_file(path)
        except UserError as error:
            yield f"no sample images are generated: {error.message}"
        else:
            yield (
                f"--sample_prompts {path} does nothing: no sample images are generated without --sample_every_n_epochs"
                " or --sample_every_n_steps"
            )


def _hub(context: Context) -> Findings:
    return hub_findings(context[HubOptions], context[OutputOptions])


def _state(context: Context) -> Findings:
    if context.state is None:
        return
    header, seed = context.state.header, context[TrainingOptions].seed
    if seed is not None and seed != header.seed:
        yield UserError(
            f"--seed {seed} is not the seed of {context.state.folder}, which is {header.seed}",
            hint="leave --seed out to continue that run",
        )
    yield from continuing_problems(header, context.options)


def _earlier_run(context: Context) -> Findings:
    """A new run would write over what an earlier one of its name has left."""
    output = context[OutputOptions]
    if output.resume is not None or output.overwrite or not context.trains:
        return
    ending = context.script.ending_of(context.options)
    saved = saved_under(Path(output.output_dir or "."), output.output_name, ignore_case=True)
    found = [each.path.name for each in saved if each.is_state or each.ending == ending]
    if found:
        yield UserError(
            f"--output_dir {output.output_dir} holds an earlier run's {listed(found, 3)}",
            hint="choose another --output_name, give --overwrite, or resume it with --resume auto",
        )


def _average(context: Context) -> Findings:
    name = context[OptimizerOptions].optimizer
    if context[AverageOptions].ema and averages_itself(name):
        yield UserError(
            f"--ema with --optimizer_type {name}, whose weights are an average already", hint="leave --ema out"
        )


def _learning_rates(context: Context) -> Findings:
    """Rates that train nothing, or hardly anything. An optimizer with a rate of its own needs none."""
    optimizing = context[OptimizerOptions]
    if not context.trains or needs_adafactor_schedule(optimizing):
        return
    rates = context.method_options.learning_rates(optimizing.learning_rate)
    if not any(rates.values()):
        given = " and ".join(f"--{name} 0" for name in rates)
        yield f"{given}: nothing is trained, the weights stay as they are"
    usual, row = context.script.usual_learning_rate, find_optimizer(optimizing.optimizer)
    is_default = rates.get("learning_rate") == OptimizerOptions().learning_rate
    if usual is not None and is_default and not (row is not None and row.adapts):
        yield (
            f"--learning_rate is not given, and {optimizing.learning_rate:g} trains hardly anything here: about"
            f" {usual:g} is usual"
        )


def _fused_backward(context: Context) -> Findings:
    return fused_backward_findings(context[TrainingOptions], context[OptimizerOptions])


def _data(context: Context) -> Findings:
    """Reads what is learnt from, such as all images and captions; what is wrong with it is raised."""
    _ = context.data
    return ()


def _masks(context: Context) -> Findings:
    subsets = [subset for dataset in context.images.datasets for subset in dataset.config.subsets]
    if context.trains and context[LossOptions].masked_loss and not any(subset.has_masks for subset in subsets):
        yield (
            "--masked_loss does nothing: no images have masks, which alpha_mask or conditioning_data_dir in the"
            " dataset file make"
        )


def _prior_loss(context: Context) -> Findings:
    weight = context[LossOptions].prior_loss_weight
    subsets = [subset for dataset in context.images.datasets for subset in dataset.config.subsets]
    if context.trains and weight != LossOptions().prior_loss_weight and not any(subset.is_reg for subset in subsets):
        yield f"--prior_loss_weight {weight:g} does nothing: there are no regularisation images (--reg_data_dir)"


def _validation(context: Context) -> Findings:
    if context.images.validation is not None:
        return
    if context[ValidationOptions].is_enabled:
        yield (
            "no validation loss is measured: no images are held out for it (--validation_split 0.1, or"
            " validation_split in the dataset file)"
        )
    elif context[DatasetOptions].validation_seed:
        yield "--validation_seed does nothing: no images are held out (--validation_split)"


PREFLIGHT_STAGES: tuple[Stage, ...] = ("options", "data")
CHECKS: tuple[Check[Context], ...] = (
    Check("options", _model_files),
    Check("options", _model_options),
    Check("options", _objective),
    Check("options", _processes),
    Check("options", _folders),
    Check("options", _prompts),
    Check("options", _hub),
    Check("options", _state),
    Check("options", _earlier_run),
    Check("options", _average),
    Check("options", _learning_rates),
    Check("options", _fused_backward),
    Check("data", _data),
)
IMAGE_CHECKS: tuple[Check[Context], ...] = (  # of scripts that learn from images
    Check("options", _inpainting),
    Check("options", _text_caching),
    Check("options", _report),
    Check("data", _masks),
    Check("data", _prior_loss),
    Check("data", _validation),
)


def folder_problems(flag: str, folder: str | None) -> Findings:
    """Says beforehand when a folder could not be created or written to."""
    if folder is None:
        return
    path = Path(folder).absolute()
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    if not existing.is_dir():
        yield UserError(f"{flag} {folder}: {existing} is a file", hint="give the path of a folder")
    elif not os.access(existing, os.W_OK):
        yield UserError(f"{flag} {folder} cannot be written to", hint="choose another, or change its permissions")
