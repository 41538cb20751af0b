"""Writes checkpoints and states, uploads them to the Hub, and prunes old ones: the only place that does."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from library.cli.atomic_files import remove_whole
from library.cli.errors import UserError, listed
from library.training.checkpoints.options import OutputOptions
from library.training.checkpoints.saved_names import STATE_ENDING, Retention, file_stem, saved_under
from library.training.checkpoints.uploads import Uploads
from library.training.devices import DTYPES
from library.training.method import TrainingMethod
from library.training.step_plan import Position

logger = logging.getLogger(__name__)

_LEFT_BEHIND_SECONDS = 3600  # older unfinished files belong to a run that was killed


class Saver:
    """Saves and prunes the checkpoints and states of a run, and records failed writes."""

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
        self._folder = Path(options.output_dir or ".")
        self._every = {"epoch": epochs_between or 1, "step": options.save_every_n_steps or 1}
        self.written: list[Path] = []
        self.last_result: Path | None = None  # the last checkpoint written
        self._failures: list[str] = []
        self._started_at = time.time()
        self._uploads = uploads
        self._to_upload: list[Path] = []
        self._pending_removal: list[Path] = []  # to be pruned, but not uploaded yet

    def remove_unfinished(self) -> None:
        """Removes temporary files of a run that was killed while saving."""
        patterns = (".tmp-*", f".{self._options.output_name or ''}*.tmp")
        for path in (path for pattern in patterns for path in self._folder.glob(pattern)):
            try:
                if time.time() - path.stat().st_mtime > _LEFT_BEHIND_SECONDS:
                    remove_whole(path)
            except OSError:  # it does no harm
                continue

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
        claim = self._folder / f".{stem}.{os.getppid()}.tmp"  # one launcher started them all
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
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
        return self._folder / f"{file_stem(self._options.output_name, suffix)}{self._method.ending}"

    def state_folder(self, suffix: str) -> Path:
        return self._folder / f"{file_stem(self._options.output_name, suffix)}{STATE_ENDING}"

    def prune(self, when: str, number: int, *, states: bool) -> None:
        """Prunes old checkpoints, or states, after the one of epoch or step `number` was saved."""
        options = self._options
        retention = Retention(options.save_last_n_epochs, options.save_last_n_steps)
        if states:
            retention = Retention(
                options.save_last_n_epochs_state or retention.last_epochs,
                options.save_last_n_steps_state or retention.last_steps,
            )
        for saved in saved_under(self._folder, options.output_name):
            if saved.is_state == states and retention.expires(saved, when, number, self._every[when]):
                if self._uploads is None or self._uploads.is_done_with(saved.path):
                    self._remove(saved.path)
                else:
                    self._pending_removal.append(saved.path)

    def _remove(self, path: Path) -> None:
        try:
            remove_whole(path)
            logger.info("removed %s", path)
        except OSError as error:
            logger.warning("%s cannot be removed: %s", path, error.strerror)

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
        for path in self._pending_removal:
            if path.exists():
                self._remove(path)

    def _write(self, path: Path, write: Callable[[Path], None]) -> bool:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
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
            raise UserError(
                f"{len(self._failures)} of the run's files are missing: {listed(self._failures, 3)}",
                hint="free disk space or check --output_dir"
                + (", then resume from the last state with --resume auto" if self._options.save_state else ""),
            )
