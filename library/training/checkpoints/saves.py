"""Writes checkpoints and states, and uploads them to the Hub: the only place that does."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from library.cli.errors import UserError, listed, plural
from library.models.devices import DTYPES
from library.training.checkpoints.options import OutputOptions
from library.training.checkpoints.pruning import Pruner
from library.training.checkpoints.saved_names import STATE_ENDING, file_stem
from library.training.checkpoints.uploads import Uploads
from library.training.method import TrainingMethod
from library.training.step_plan import Position

logger = logging.getLogger(__name__)


class Saver:
    """Saves the checkpoints and states of a run, and records failed writes."""

    def __init__(
        self,
        options: OutputOptions,
        method: TrainingMethod,
        epochs_between: int | None,
        uploads: Uploads | None = None,
    ):
        """epochs_between: epochs from one epoch checkpoint to the next; None without epoch checkpoints."""
        self._options = options
        self._method = method
        self.folder = Path(options.output_dir or ".")
        self.written: list[Path] = []
        self.last_result: Path | None = None  # the last checkpoint written
        self._failures: list[str] = []
        self._started_at = time.time()
        self._uploads = uploads
        self._to_upload: list[Path] = []
        self.pruner = Pruner(options, epochs_between, lambda path: uploads is None or uploads.is_done_with(path))

    def save(self, suffix: str, metadata: dict[str, str], position: Position) -> bool:
        """Writes the checkpoint `<name><suffix>`; returns whether that succeeded. A failure is logged."""
        path = self.weights_path(suffix)
        dtype = DTYPES[self._options.save_precision]
        is_saved = self._write(path, lambda target: self._method.save(target, dtype, metadata, position))
        if is_saved:
            self.last_result = path
        return is_saved

    def save_state(self, suffix: str, state: Callable[[Path], None]) -> bool:
        """Calls `state` to write `<name><suffix>-state`; returns whether that succeeded. A failure is logged."""
        return self._write(self.state_folder(suffix), state)

    @contextmanager
    def claimed(self, suffix: str) -> Iterator[bool]:
        """Whether this process is the one of the run, on this machine, that saves `<name><suffix>` now."""
        stem = file_stem(self._options.output_name, suffix)
        claim = self.folder / f".{stem}.{os.getppid()}.tmp"  # one launcher started them all
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            claim.touch(exist_ok=False)
        except OSError:
            yield False
            return
        try:
            yield True
        finally:
            claim.unlink(missing_ok=True)

    def has_written(self, path: Path) -> bool:
        """Whether a process of this run has written a checkpoint or state."""
        return path in self.written or (path.exists() and path.stat().st_mtime >= self._started_at)

    def weights_path(self, suffix: str) -> Path:
        return self.folder / f"{file_stem(self._options.output_name, suffix)}{self._method.ending}"

    def state_folder(self, suffix: str) -> Path:
        return self.folder / f"{file_stem(self._options.output_name, suffix)}{STATE_ENDING}"

    def upload(self) -> None:
        """Uploads what was saved since the last call, where the run uploads to the Hub."""
        paths, self._to_upload = self._to_upload, []
        for path in paths:
            if self._uploads is not None and (self._uploads.with_states or not path.name.endswith(STATE_ENDING)):
                self._uploads.add(path)

    def finish_uploads(self) -> None:
        """Waits for the uploads, logs which failed, and prunes what was kept for them."""
        if self._uploads is not None:
            self._uploads.finish()
        self.pruner.finish()

    def _write(self, path: Path, write: Callable[[Path], None]) -> bool:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write(path)
        except OSError as error:
            reason = f"{path} cannot be written: {error.strerror or error}"
            self._failures.append(reason)
            logger.error("%s; check --output_dir and the free disk space", reason)
            return False
        self.written.append(path)
        self._to_upload.append(path)
        logger.info("saved %s", path)
        return True

    def raise_failures(self) -> None:
        """Raises `UserError` when a checkpoint or state could not be written."""
        if self._failures:
            files = plural(len(self._failures), "of the run's files is", "of the run's files are")
            raise UserError(
                f"{files} missing: {listed(self._failures, 3)}",
                hint="free disk space or check --output_dir"
                + (", then resume from the last state with --resume auto" if self._options.save_state else ""),
            )
