"""The page of a run while it runs: collects what it shows, and writes it at each save and at the end."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from library.cli.errors import OutOfMemory, Stopped, UserError, first_line
from library.cli.launcher import command_line
from library.cli.logging import kept_warnings
from library.models.family import ModelFamily
from library.run_report.curves import Curve, Smoother, is_finite, up_to
from library.run_report.page import report_environment, run_page
from library.run_report.readings import LOSS, SMOOTHED, VALIDATION
from library.run_report.record import (
    PAGE_ENDING,
    Ending,
    Phase,
    RunRecord,
    SampleRow,
    Save,
    Session,
    read_page,
    write_text,
)
from library.run_report.thumbnails import SampleGrid, Thumbnails
from library.training.checkpoints.options import OutputOptions
from library.training.checkpoints.saved_names import file_stem
from library.training.evaluation.sample_files import SampleHistory, round_title
from library.training.loop.run_command import RunCommand
from library.training.loop.run_facts import data_facts, model_facts
from library.training.loop.saved_files import SavedFiles
from library.training.method import TrainingMethod
from library.training.monitoring.performance import peak_memory
from library.training.monitoring.phases import PhaseTimes
from library.training.options import TrainingOptions
from library.training.run_setup import RunSetup

if TYPE_CHECKING:
    from library.training.loop.step import LoggedStep

logger = logging.getLogger(__name__)

_MOST_WARNINGS = 200
_SMOOTHED_PARTS, _SMOOTHED_STEPS = 50, 20  # the smoothed loss averages over this share of the run, or so many steps
_LEAST_SECONDS = 0.001  # of a phase that is shown


class RunPage:
    """What the page of a run shows. Only the first process writes it, and no failure to do so ends a run.

    A context manager: within it the run happens, and what ends that is on the page. Before `begin` nothing is written.
    """

    def __init__(self, command: RunCommand):
        self._command = command
        self._record: RunRecord | None = None  # None where no page is written
        self._has_failed = False

    def begin(self, run: RunSetup) -> None:
        """Call when the run is planned. A resumed run goes on with the curves of the earlier one's page."""
        output = run.options[OutputOptions]
        is_dry = run.options[TrainingOptions].dry_run
        if output.no_run_report or is_dry or not run.accelerator.is_main_process:
            return
        self.path = page_path(output)
        with self._harmless():
            self._record = self._begun(run)

    def _begun(self, run: RunSetup) -> RunRecord:
        record = RunRecord(
            name=run.options[OutputOptions].name,
            program=self._command.program,
            command=command_line(self._command.words(run.plan.seed)),
            seed=run.plan.seed,
            num_steps=run.plan.num_steps,
            started_at=time.time(),
            first_step=run.start.global_step,
            step=run.start.global_step,
            facts=list(data_facts(run)),
            options=self._command.options(),
        )
        self._times = PhaseTimes(lambda: peak_memory(run.accelerator.device))
        self._files = SavedFiles(self.path.parent)
        self._nonfinite: Sequence[tuple[int, str]] = ()
        self._skipped_before: list[tuple[int, str]] = []
        self._num_skipped_before = 0
        self._earlier_warnings: list[str] = []
        self._data_warnings = [message.text for message in run.context.data_and_warnings[1]]
        self._history = SampleHistory()
        self._thumbnails = Thumbnails()
        self._environment = report_environment()
        self._window = max(_SMOOTHED_STEPS, run.plan.num_steps / _SMOOTHED_PARTS)
        self._smoother = Smoother(self._window)
        self._curves: dict[str, Curve] = {}
        if run.start.global_step:
            self._go_on(run, record)
        return record

    def _go_on(self, run: RunSetup, record: RunRecord) -> None:
        """Takes over what the earlier page has, up to the step that the run begins after."""
        earlier, start = _earlier_record(run, self.path), run.start.global_step
        if earlier is None:
            return
        self._curves = {name: Curve(up_to(points, start)) for name, points in earlier.curves.items()}
        record.epoch_ends = [step for step in earlier.epoch_ends if step <= start]
        record.saves = [save for save in earlier.saves if save.step <= start]
        self._skipped_before = [(step, text) for step, text in earlier.skipped if step <= start]
        self._num_skipped_before = earlier.num_skipped - len(earlier.skipped) + len(self._skipped_before)
        self._earlier_warnings = earlier.warnings
        seconds = max(0.0, earlier.updated_at - earlier.started_at)
        session = Session(earlier.first_step, earlier.step, seconds, earlier.ending.kind)
        record.sessions = [*earlier.sessions, session]
        self._files.go_on(earlier.files)
        smoothed = self._curves.get(SMOOTHED, Curve()).points
        if smoothed:
            step, value = smoothed[-1]
            self._smoother = Smoother(self._window, value, step)

    def attached(self, run: RunSetup, method: TrainingMethod, family: ModelFamily) -> None:
        """What is trained has been attached to the model."""
        if self._record is not None:
            with self._harmless():
                self._record.facts = [*model_facts(run, method, family), *self._record.facts]

    def watch(self, nonfinite: Sequence[tuple[int, str]]) -> None:
        """`nonfinite`: the list that receives the steps that are not applied."""
        self._nonfinite = nonfinite

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Within it the run's time is counted as `name`."""
        if self._record is None:
            yield
        else:
            with self._times.phase(name):
                yield

    def add_step(self, logged: LoggedStep) -> None:
        """A step that was applied."""
        if self._record is not None:
            self._record.step = logged.step
            self._add(LOSS, logged.step, logged.loss)
            self._add(SMOOTHED, logged.step, self._smoother.add(logged.loss))
            for name, rate in logged.rates.items():
                self._add(name, logged.step, rate)

    def add_validation(self, mean: float, step: int) -> None:
        if self._record is not None:
            self._add(VALIDATION, step, mean)

    def _add(self, name: str, step: int, value: float) -> None:
        if is_finite(value):
            self._curves.setdefault(name, Curve()).add(step, value)
        else:
            logger.warning("step %d: the %s is not finite", step, name)

    def end_epoch(self, step: int) -> None:
        if self._record is not None and step not in self._record.epoch_ends:
            self._record.epoch_ends.append(step)

    def add_samples(self, history: SampleHistory) -> None:
        """`history`: of all rounds so far."""
        self._history = history
        self.write()

    def add_saved(self, step: int, paths: Mapping[Path, bool]) -> None:
        """`paths`: of a checkpoint and a state, and whether each was saved at `step`."""
        if self._record is not None:
            self._record.step = max(self._record.step, step)
            for path in (path for path, is_saved in paths.items() if is_saved):
                self._files.add(path)
                self._record.saves = [save for save in self._record.saves if save.name != path.name]
                self._record.saves.append(Save(step, path.name))

    def write(self, *, hashes_all: bool = False) -> None:
        """Writes the page now. A failure is a warning, once. `hashes_all`: large files too, which takes its time."""
        if self._record is None or self._has_failed:
            return
        with self._harmless():
            self._complete(self._record, hashes_all)
            grid = self._thumbnails.shown(_grid_of(self._history))
            self._record.samples, self._record.rounds = list(grid.rows), list(grid.rounds)
            write_text(self.path, run_page(self._record, grid, self._environment))

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        """Within it an error is a warning, and the end of the page."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - of the disk, of Pillow: the weights are what counts
            self._has_failed = True
            logger.warning("the run's page %s cannot be written: %s", self.path, first_line(error))

    def _complete(self, record: RunRecord, hashes_all: bool) -> None:
        """Brings the record up to date."""
        record.updated_at = time.time()
        self._times.take()
        record.curves = {name: curve.points for name, curve in self._curves.items()}
        record.skipped = [*self._skipped_before, *self._nonfinite][:_MOST_WARNINGS]
        record.num_skipped = self._num_skipped_before + len(self._nonfinite)
        skipped = {text for _, text in [*self._skipped_before, *self._nonfinite]}
        warnings = dict.fromkeys(
            [*self._earlier_warnings, *self._data_warnings, *(each.text for each in self._warnings)]
        )
        record.warnings = [self._command.without_secrets(text) for text in warnings if text not in skipped]
        record.warnings = record.warnings[:_MOST_WARNINGS]
        record.phases = [
            Phase(name, total.seconds, total.peak_gib)
            for name, total in self._times.totals.items()
            if total.seconds >= _LEAST_SECONDS
        ]
        record.files = self._files.described(hashes_all=hashes_all)

    def __enter__(self) -> RunPage:
        self._warning_scope = kept_warnings(of_all=True)
        self._warnings = self._warning_scope.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._warning_scope.__exit__(None, None, None)
        if self._record is None:
            return
        self._record.ending = _ending_of(error, self._record.step, self._command)
        self.write()
        is_stopped = self._record.ending.kind == "stopped"  # who stops a run waits for its end
        if not is_stopped and any(file.sha256 is None for file in self._record.files):
            self.write(hashes_all=True)


def page_path(output: OutputOptions) -> Path:
    """Of the page of a run."""
    return Path(output.output_dir or ".") / f"{file_stem(output.output_name, '')}{PAGE_ENDING}"


def _earlier_record(run: RunSetup, path: Path) -> RunRecord | None:
    """Of the run that is resumed: from the page in the output folder, or the one beside the state."""
    paths = [path]
    if run.state is not None:
        name = run.state.header.options.get("output_name")
        paths.append(Path(run.state.folder).absolute().parent / f"{file_stem(name, '')}{PAGE_ENDING}")
    for each in paths:
        if not each.is_file():
            continue
        try:
            earlier = read_page(each).record
        except UserError as error:
            logger.warning("%s: the curves of the run's page begin at step %d", error.message, run.start.global_step)
            continue
        if earlier.seed == run.plan.seed:
            return earlier
    return None


def _grid_of(history: SampleHistory) -> SampleGrid:
    rows = [
        SampleRow(
            prompt.prompt,
            prompt.negative_prompt,
            f"{prompt.width}x{prompt.height}, {prompt.sample_steps} steps, CFG {prompt.scale:g}"
            + (f", {prompt.sampler}" if prompt.sampler else "")
            + ("" if prompt.seed is None else f", seed {prompt.seed}"),
        )
        for prompt, _ in history.rows
    ]
    files = {(row, step): path for row, images in enumerate(history.rows.values()) for step, path in images.items()}
    return SampleGrid(rows, [(step, round_title(name)) for step, name in sorted(history.rounds.items())], files)


def _ending_of(error: BaseException | None, step: int, command: RunCommand) -> Ending:
    if error is None:
        return Ending("finished")
    if isinstance(error, Stopped):
        hint = "no state was saved" if error.state is None else f"resume with --resume {error.state}"
        return Ending("stopped", f"{signal.Signals(error.signal_number).name} after step {step:,}", hint)
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        return Ending("stopped", f"after step {step:,}")
    if isinstance(error, UserError):
        kind = "out of memory" if isinstance(error, OutOfMemory) else "failed"
        return Ending(kind, command.without_secrets(error.message), command.without_secrets(error.hint or ""))
    return Ending("failed", command.without_secrets(f"{type(error).__name__}: {first_line(error)}"))
