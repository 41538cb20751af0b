"""The checks of a run that need a device or the loaded model, before hours are spent on caches and training."""

from __future__ import annotations

from dataclasses import dataclass

from library.cli.checks import Check, Findings
from library.cli.errors import UserError, plural
from library.data.config.options import InpaintingOptions
from library.diffusion.options import LossOptions, NoiseOptions
from library.models.devices import unused_gpu
from library.models.family import ModelFamily
from library.models.options import MemoryOptions, ModelOptions
from library.training.devices import memory_findings, precision_findings
from library.training.method import TrainingMethod
from library.training.optimization.ema import average_findings
from library.training.optimization.fused_backward import fused_processes_findings
from library.training.optimization.lr_schedules import lr_schedule_findings
from library.training.optimization.optimizers import optimizer_findings, rate_findings
from library.training.optimization.options import AverageOptions, OptimizerOptions
from library.training.options import TrainingOptions
from library.training.preflight import MASKS_OF_LOSS, not_widened
from library.training.run_setup import RunSetup


@dataclass(frozen=True)
class LoadedModel:
    """The model of a run, with what is trained attached to it."""

    run: RunSetup
    family: ModelFamily
    method: TrainingMethod


def _memory_options(run: RunSetup) -> Findings:
    return memory_findings(run.options[MemoryOptions], run.accelerator.device)


def _gpu(run: RunSetup) -> Findings:
    warning = unused_gpu() if run.accelerator.device.type == "cpu" else None
    if warning is not None:
        yield warning


def _precision(run: RunSetup) -> Findings:
    return precision_findings(run.options[TrainingOptions], run.accelerator.device)


def _fused_backward(run: RunSetup) -> Findings:
    return fused_processes_findings(run.options[TrainingOptions], run.accelerator.num_processes)


def _optimizer(run: RunSetup) -> Findings:
    return optimizer_findings(run.options[OptimizerOptions], run.accelerator.device)


def _lr_schedule(run: RunSetup) -> Findings:
    return lr_schedule_findings(run.options[OptimizerOptions], run.plan.num_steps)


def _average(run: RunSetup) -> Findings:
    return average_findings(run.options[AverageOptions], run.plan.num_steps)


def _state(run: RunSetup) -> Findings:
    """A position inside an epoch means something only in the same plan."""
    state, plan = run.state, run.plan
    if state is None or run.start != state.position:
        return
    now = (plan.num_micro_batches, plan.group_size)
    then = (state.header.num_micro_batches, state.header.group_size)
    if run.start.step_in_epoch and now != then:
        batches = plural(then[0], "batch", "batches")
        yield UserError(
            f"--resume: an epoch of the saved run had {batches}, {then[1]} to a step; now {now[0]}, {now[1]}",
            hint="resume with the same data, batch size, accumulation and processes, or from a state saved"
            " at the end of an epoch",
        )
    if run.start.global_step > plan.num_steps:
        done = plural(run.start.global_step, "step")
        yield UserError(
            f"--resume: the saved run has done {done}, more than the {plan.num_steps} asked for",
            hint=f"raise {run.options[TrainingOptions].length_flag}",
        )
    if run.start.global_step == plan.num_steps:  # its end may not have been saved
        done = plural(plan.num_steps, "step is", "steps are")
        yield (
            f"--resume: the run's {done} done; the result is saved, and nothing more is"
            f" trained (raise {run.options[TrainingOptions].length_flag} for more)"
        )


def _objective(loaded: LoadedModel) -> Findings:
    """Noise and loss against a model whose small files did not say what it is."""
    family, options = loaded.family, loaded.run.options
    if loaded.run.context.model is not None:
        return
    yield from family.process.findings(options[NoiseOptions], options[LossOptions])


def _inpainting(loaded: LoadedModel) -> Findings:
    """The same for a model whose small files did not say what it takes."""
    context = loaded.run.context
    if not context.script.offers_datasets:
        return
    if loaded.family.takes_masks and not context.inpaints and context[LossOptions].masked_loss:
        yield MASKS_OF_LOSS
    if context[InpaintingOptions].train_inpainting and not loaded.family.takes_masks:
        yield not_widened(context.script, context[ModelOptions].pretrained_model_name_or_path)


def _data(loaded: LoadedModel) -> Findings:
    """Checked after `attach`, when it is known how many tokens an embedding has."""
    if loaded.run.accelerator.is_main_process:
        yield from loaded.run.context.data.findings(loaded.family)


def _learning_rates(loaded: LoadedModel) -> Findings:
    return rate_findings(loaded.run.options[OptimizerOptions], loaded.method.param_groups())


DEVICE_CHECKS: tuple[Check[RunSetup], ...] = (
    Check("device", _gpu),
    Check("device", _memory_options),
    Check("device", _precision),
    Check("device", _fused_backward),
    Check("device", _optimizer),
    Check("device", _state),
    Check("device", _lr_schedule),
    Check("device", _average),
)
MODEL_CHECKS: tuple[Check[LoadedModel], ...] = (
    Check("model", _objective),
    Check("model", _inpainting),
    Check("model", _data),
    Check("model", _learning_rates),
)
