"""What a run writes and shows while it trains: curves, validation, sample images, checkpoints and their uploads."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from tqdm.contrib.logging import logging_redirect_tqdm

from library.cli.errors import first_line
from library.cli.launcher import command_line
from library.cli.logging import duration, progress_bar
from library.cli.options import plain_values
from library.data.records import StepCounter
from library.models.family import ModelFamily
from library.training.checkpoints.metadata import Metadata
from library.training.checkpoints.options import OutputOptions
from library.training.checkpoints.pruning import clear_up
from library.training.checkpoints.saved_names import epoch_suffix, step_suffix
from library.training.checkpoints.saves import Saver
from library.training.checkpoints.states import RunIdentity, write_state
from library.training.distributed.processes import of_first_process
from library.training.evaluation.modes import ema_scope
from library.training.evaluation.options import SampleOptions, validation_options
from library.training.evaluation.prompt_files import PromptFile
from library.training.evaluation.sample_files import earlier_images
from library.training.evaluation.samples import Sampler, SampleSettings
from library.training.evaluation.validation import VALIDATION_SEED, Validator
from library.training.inputs.run_data import Inputs
from library.training.loop.curves import Curves
from library.training.loop.due import Due, OutputSchedule
from library.training.loop.run_page import RunPage, page_path
from library.training.loop.step import Step
from library.training.method import TrainingMethod
from library.training.monitoring.options import LoggingOptions
from library.training.monitoring.trackers import Tracker, TrackerSettings, make_tracker, run_folder
from library.training.options import TrainingOptions
from library.training.run_setup import RunSetup
from library.training.step_plan import Position, StepPlan

logger = logging.getLogger(__name__)

LOG_INTERVAL = 10  # steps between two waits for the device, to fetch losses


@dataclass(frozen=True)
class OutputParts:
    """What an `Outputs` works with; `make_outputs` puts it together. Only the first process has a tracker."""

    accelerator: Accelerator
    method: TrainingMethod
    step: Step
    plan: StepPlan
    identity: RunIdentity
    schedule: OutputSchedule
    saver: Saver
    metadata: Metadata
    validator: Validator | None
    sampler: Sampler | None
    curves: Curves
    page: RunPage
    sample_folder: Path
    length_flag: str  # what makes the run longer


class Outputs:
    """Validates, draws samples and saves whenever that is due. All processes call every method together."""

    def __init__(self, parts: OutputParts):
        self._parts = parts
        self._is_main = parts.accelerator.is_main_process
        self._validated_at: int | None = None
        self._began = time.perf_counter()

    @contextmanager
    def shown(self, start: Position) -> Iterator[None]:
        """Within it the progress bar counts steps. At the end curves are closed, and uploads waited for."""
        is_quiet = not self._parts.accelerator.is_local_main_process
        bar = progress_bar(self._parts.plan.num_steps, "steps", initial=start.global_step, is_quiet=is_quiet)
        if self._is_main:
            clear_up(self._parts.saver.folder, self._parts.schedule.output.output_name)
        try:
            with logging_redirect_tqdm(), bar as self._progress:
                yield
        finally:  # the curve of a run that ends early is wanted most
            self._parts.curves.close()
            with self._parts.page.phase("uploads"):
                self._parts.saver.finish_uploads()

    def begin(self, position: Position) -> None:
        """Before the first step of a new run."""
        self._do(self._parts.schedule.at_start(), position, sample_name="000000")

    def begin_epoch(self, epoch: int) -> None:
        """Shows which epoch runs; `epoch` counts from 1."""
        self._progress.set_description(f"epoch {epoch}/{self._parts.plan.num_epochs}", refresh=False)

    def count_step(self, position: Position) -> None:
        """Shows a step in the progress bar and, every few steps, in the curves."""
        self._progress.update(1)
        if position.global_step % LOG_INTERVAL == 0:
            self._log()

    def after_step(self, position: Position) -> None:
        step = position.global_step
        due = self._parts.schedule.after_step(step)
        self._do(due, position, sample_name=f"{step:06d}")
        if due.save:
            self._save_and_prune("step", step, step_suffix(step), position)

    def after_epoch(self, epoch: int, position: Position) -> None:
        """`epoch` counts from 1."""
        self._log()
        self._parts.curves.end_epoch(position.global_step)
        due = self._parts.schedule.after_epoch(epoch)
        self._do(due, position, sample_name=f"e{epoch:06d}", at_epoch_end=True)
        if due.save:
            self._save_and_prune("epoch", epoch, epoch_suffix(epoch), position)

    def end(self, position: Position) -> None:
        """The result."""
        self._log()
        if self._parts.schedule.samples_at_end(position):
            self._draw_samples(f"e{position.epoch + 1:06d}", position)
        self._validate(position, at_epoch_end=position.step_in_epoch == 0)
        self._save("", position, with_state=self._parts.schedule.saves_state_at_end)

    def save_on_signal(self, position: Position) -> str | None:
        """Saves what a run has that stops before its end; the folder of its state, if one was saved."""
        suffix = step_suffix(position.global_step)
        _, has_state = self._save(suffix, position, with_state=self._parts.schedule.saves_state_on_signal)
        return str(self._parts.saver.state_folder(suffix)) if has_state else None

    def save_state_alone(self, position: Position) -> str | None:
        """Saves a state without weights for use, which are doubtful; its folder, if it could be written."""
        suffix = step_suffix(position.global_step)
        is_saved = self._save_state(suffix, position)
        if self._is_main:
            self._parts.page.add_saved(position.global_step, {self._parts.saver.state_folder(suffix): is_saved})
            self._parts.saver.upload()
        self._parts.accelerator.wait_for_everyone()
        return str(self._parts.saver.state_folder(suffix)) if is_saved else None

    @property
    def can_save_alone(self) -> bool:
        """Whether a process can save without the others."""
        return self._parts.accelerator.num_processes == 1 or not self._parts.step.strategy.shards_weights

    def save_on_failure(self, position: Position, *, is_agreed: bool, is_another_lost: bool) -> str | None:
        """Saves what is not saved yet of a run that fails, and says where; the folder of its state, if there is one.

        The first process saves; where another is lost, which may be the first, one of those that are left. `is_agreed`:
        all processes are here.
        """
        saver = self._parts.saver
        suffix = "" if position.global_step == self._parts.plan.num_steps else step_suffix(position.global_step)
        is_any = is_another_lost and not is_agreed
        with saver.claimed(suffix) if is_any else nullcontext(self._is_main) as is_ours:
            if is_ours:
                self._save_alone(suffix, position)
        if is_agreed:
            with _logged_failure("another process"):
                self._parts.accelerator.wait_for_everyone()
        state = saver.state_folder(suffix)
        return str(state) if saver.has_written(state) else None

    def _save_alone(self, suffix: str, position: Position) -> None:
        """Saves weights and state without the other processes. No failure here hides the one that ends the run."""
        saver, step = self._parts.saver, self._parts.step
        weights, state = saver.weights_path(suffix), saver.state_folder(suffix)
        with _logged_failure("curves"):
            self._log()
        if not saver.has_written(weights):
            with _logged_failure(str(weights)), self._ema_scope(), step.strategy.gathered_weights():
                saver.save(suffix, self._parts.metadata.at(position), position)
        if self._parts.schedule.saves_state_on_signal and not saver.has_written(state):
            with _logged_failure(str(state)):
                self._write_state(suffix, position, step.state())
        written = [str(path) for path in (weights, state) if saver.has_written(path)]
        if written:
            resume = f"; go on with {command_line(['--resume', str(state)])}" if str(state) in written else ""
            logger.warning("the run ends after step %d: %s%s", position.global_step, " and ".join(written), resume)
        self._parts.page.add_saved(position.global_step, {path: saver.has_written(path) for path in (weights, state)})
        with _logged_failure("uploads"):
            saver.upload()

    def report(self) -> None:
        """Says what was written. Raises `UserError` when something could not be."""
        if not self._is_main:
            return
        saver, method, curves = self._parts.saver, self._parts.method, self._parts.curves
        lines = ["", "Written:", *(f"  {path}" for path in dict.fromkeys(saver.written) if path.exists())]
        if self._parts.sampler is not None and self._parts.sample_folder.is_dir():
            lines.append(f"  {self._parts.sample_folder} (sample images)")
        if not self._parts.schedule.output.no_run_report:
            lines.append(f"  {page_path(self._parts.schedule.output)} (the run's page: curves, samples, files)")
        if curves.found_at is not None:
            lines.append(f"  {curves.found_at}")
        lines.append(f"took {duration(time.perf_counter() - self._began)} from the first step to the last")
        if curves.best is not None:
            lines.append(f"lowest validation loss {curves.best[0]:.4f}, at step {curves.best[1]}")
        if saver.last_result is not None:
            lines += ["Next:", f"  {method.usage_hint(saver.last_result)}"]
        state = saver.state_folder("")
        if state in saver.written:
            resume = command_line(["--resume", str(state)])
            lines.append(f"  or resume: the same command with {resume} and more {self._parts.length_flag}")
        for line in lines:
            logger.info("%s", line)
        saver.raise_failures()

    def _do(self, due: Due, position: Position, *, sample_name: str, at_epoch_end: bool = False) -> None:
        if due.validate:
            self._validate(position, at_epoch_end=at_epoch_end)
        if due.sample:
            self._draw_samples(sample_name, position)

    def _log(self) -> None:
        """Hands the losses and learning rates since the last call to the tracker and the progress bar."""
        curves = self._parts.curves
        curves.log()
        if curves.average is not None:
            self._progress.set_postfix(avr_loss=f"{curves.average:.4f}", refresh=False)

    def _draw_samples(self, name: str, position: Position) -> None:
        sampler, strategy, accelerator = self._parts.sampler, self._parts.step.strategy, self._parts.accelerator
        if sampler is not None and (self._is_main or strategy.shards_weights):
            self._log()
            drawing = self._parts.page.phase("sample images")
            with drawing, self._ema_scope(), torch.no_grad(), accelerator.autocast():
                images = strategy.run(lambda: sampler.draw(name, position.global_step))
            self._parts.curves.images(images, position.global_step)
            self._parts.page.add_samples(sampler.history)
        accelerator.wait_for_everyone()

    def _validate(self, position: Position, *, at_epoch_end: bool) -> None:
        """Measures the validation loss, where images are held out and this step has not been measured yet."""
        step = position.global_step
        if self._parts.validator is None or self._validated_at == step:
            return
        self._validated_at = step
        self._log()
        with self._parts.page.phase("validation"), self._ema_scope():
            losses = self._parts.validator.losses(self._parts.step.strategy.run)
        logger.info("validation loss %.4f at step %d", losses["loss/validation"], step)
        self._parts.curves.validation(losses, step, at_epoch_end=at_epoch_end)

    def _save_and_prune(self, when: str, number: int, suffix: str, position: Position) -> None:
        """Saves, and removes what `--save_last_n_*` does not keep: each where the new one is in place."""
        is_saved, has_state = self._save(suffix, position, with_state=self._parts.schedule.output.save_state)
        if self._is_main and is_saved:
            self._parts.saver.pruner.prune(when, number, states=False)
        if self._is_main and has_state:
            self._parts.saver.pruner.prune(when, number, states=True)
        self._parts.page.write()

    def _save(self, suffix: str, position: Position, *, with_state: bool) -> tuple[bool, bool]:
        """Whether weights and state are saved; the first process knows."""
        is_saved = False
        self._log()
        saver = self._parts.saver
        with self._parts.page.phase("saves"):
            with self._ema_scope(), self._parts.step.strategy.gathered_weights():
                if self._is_main:
                    is_saved = saver.save(suffix, self._parts.metadata.at(position), position)
            has_state = with_state and self._save_state(suffix, position)
        if self._is_main:
            written = {saver.weights_path(suffix): is_saved, saver.state_folder(suffix): has_state}
            self._parts.page.add_saved(position.global_step, written)
            saver.upload()
        self._parts.accelerator.wait_for_everyone()
        return is_saved, has_state

    def _save_state(self, suffix: str, position: Position) -> bool:
        training = self._parts.step.state()
        with self._parts.step.strategy.gathered_weights():
            return self._is_main and self._write_state(suffix, position, training)

    def _write_state(self, suffix: str, position: Position, training: dict[str, Any]) -> bool:
        weights, identity = self._parts.method.state_dict(), self._parts.identity
        return self._parts.saver.save_state(
            suffix, lambda folder: write_state(folder, position, identity, weights, training)
        )

    @contextmanager
    def _ema_scope(self) -> Iterator[None]:
        """Within it the weights are those to show and save. A kill of the exchange itself leaves a step not whole."""
        step, error_within = self._parts.step, None
        whole_step, step.whole_step = step.whole_step, None
        with ema_scope(step.strategy.optimizer, step.average):
            try:
                yield
            except BaseException as error:  # noqa: BLE001 - raised again below
                error_within = error
        step.whole_step = whole_step
        if error_within is not None:
            raise error_within


@contextmanager
def _logged_failure(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - another error ends the run
        logger.error("%s: %s", what, first_line(error))


def make_outputs(
    run: RunSetup, method: TrainingMethod, family: ModelFamily, step: Step, inputs: Inputs, page: RunPage
) -> Outputs:
    """The outputs that the options ask for."""
    page.watch(step.nonfinite.named)
    options, accelerator, context = run.options, run.accelerator, run.context
    output, samples = options[OutputOptions], options[SampleOptions]
    modules = [family.unet, *family.text_encoders, family.vae, *method.trainable_modules()]
    sampler, validator = None, None
    tracker = _make_tracker(run) if accelerator.is_main_process else None
    if context.prompts:
        sampler = _make_sampler(run, family, modules, are_sharded=step.strategy.shards_weights)
    if inputs.held_out is not None:
        held_out, images = inputs.held_out.inputs, inputs.held_out.images
        validator = Validator(
            held_out.objective,
            held_out.loader_of(images, VALIDATION_SEED, StepCounter(1, images.num_micro_batches, num_steps=1)),
            images,
            accelerator,
            modules=modules,
            max_batches=validation_options(options).max_validation_steps,
        )
    return Outputs(
        OutputParts(
            accelerator=accelerator,
            method=method,
            step=step,
            plan=run.plan,
            identity=run.identity,
            schedule=OutputSchedule(output, samples, validation_options(options), run.plan),
            saver=Saver(output, method, run.plan.epochs_between_saves, run.uploads),
            metadata=Metadata(options, context.data, family, method, run.plan, step.strategy.optimizer),
            validator=validator,
            sampler=sampler,
            curves=Curves(tracker, step, method, accelerator.device, page),
            page=page,
            sample_folder=context.sample_folder,
            length_flag=options[TrainingOptions].length_flag,
        )
    )


def _make_tracker(run: RunSetup) -> Tracker | None:
    options = run.options
    logs, output_name = options[LoggingOptions], options[OutputOptions].output_name
    folder, arguments = run_folder(logs.logging_dir, logs.log_prefix), logs.tracker_arguments()
    project, shown = logs.log_tracker_name, plain_values(options) if logs.log_config else {}
    settings = {
        "tensorboard": TrackerSettings(
            folder if folder is None or project is None else folder / project,
            project or "",
            arguments=arguments.get("tensorboard", {}),
            options=shown,
        ),
        "wandb": TrackerSettings(
            folder,
            project or run.context.script.tracker_project,
            logs.wandb_run_name or output_name,
            logs.wandb_api_key,
            arguments.get("wandb", {}),
            shown,
        ),
    }
    return make_tracker(logs.trackers, settings)


def _make_sampler(run: RunSetup, family: ModelFamily, modules: Sequence[nn.Module], *, are_sharded: bool) -> Sampler:
    options, context, is_main = run.options, run.context, run.accelerator.is_main_process
    settings = SampleSettings(
        folder=context.sample_folder,
        run=options[OutputOptions].output_name or "",
        sampler=options[SampleOptions].sampler,
        seed=run.plan.seed,
        writes=is_main,
        are_sharded=are_sharded,
    )
    file = PromptFile(str(options[SampleOptions].sample_prompts), context.prompts)
    prompts = (lambda: of_first_process(file.prompts())) if are_sharded else file.prompts
    history = None
    if is_main and run.state is not None:
        history = earlier_images(settings.folder, settings.run, run.start.global_step)
    return Sampler(family, modules, prompts, settings, history)
