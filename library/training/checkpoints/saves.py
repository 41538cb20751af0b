"""Saved weights and states: the one place that writes them, hands them to the Hub, and lets earlier ones go."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from library.cli.atomic_files import remove_whole
from library.cli.errors import UserError, listed
from library.training.checkpoints.options import OutputOptions
from library.training.checkpoints.saved_names import STATE_ENDING, Retention, file_stem, saved_under
from library.training.checkpoints.uploads import Uploads
from library.training.devices import DTYPES
from library.training.method import TrainingMethod
from library.training.step_plan import Position

logger = logging.getLogger(__name__)

_LEFT_BEHIND_SECONDS = 3600  # unfinished files that are older belong to a run that was killed


class Saver:
    """Writes weights and states, and remembers what it wrote and what it could not write."""

    def __init__(
        self,
        options: OutputOptions,
        method: TrainingMethod,
        epochs_between: int | None,
        uploads: Uploads | None = None,
    ):
        """epochs_between: from one save of an epoch to the next; None without such saves."""
        self._options = options
        self._method = method
        self._folder = Path(options.output_dir or ".")
        self._every = {"epoch": epochs_between or 1, "step": options.save_every_n_steps or 1}
        self.written: list[Path] = []
        self.last_result: Path | None = None  # of what was written, the last that is no state
        self._failures: list[str] = []
        self._uploads = uploads
        self._to_upload: list[Path] = []
        self._pending_removal: list[Path] = []  # too old, and not uploaded yet

    def remove_unfinished(self) -> None:
        """Removes what a kill in the middle of a save has left in the folder."""
        patterns = (".tmp-*", f".{self._options.output_name or ''}*.tmp")
        for path in (path for pattern in patterns for path in self._folder.glob(pattern)):
            try:
                if time.time() - path.stat().st_mtime > _LEFT_BEHIND_SECONDS:
                    remove_whole(path)
            except OSError:  # it is in nobody's way
                continue

    def save(self, suffix: str, metadata: dict[str, str], position: Position) -> bool:
        """Writes `<name><suffix>` with the method's ending; whether that went well. What did not is logged."""
        path = self._folder / f"{file_stem(self._options.output_name, suffix)}{self._method.ending}"
        dtype = DTYPES[self._options.save_precision]
        is_saved = self._write(path, lambda target: self._method.save(target, dtype, metadata, position))
        if is_saved:
            self.last_result = path
        return is_saved

    def save_state(self, suffix: str, state: Callable[[Path], None]) -> bool:
        """Lets `state` write `<name><suffix>-state`; whether that went well. What did not is logged."""
        return self._write(self.state_folder(suffix), state)

    def state_folder(self, suffix: str) -> Path:
        return self._folder / f"{file_stem(self._options.output_name, suffix)}{STATE_ENDING}"

    def prune(self, when: str, number: int, *, states: bool) -> None:
        """Removes the saves, or the states, that are too old now that the one of epoch or step `number` is there."""
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
        """Sends what was written since the last call to the Hub, where the run uploads its saves."""
        paths, self._to_upload = self._to_upload, []
        for path in paths:
            if self._uploads is not None and (self._uploads.with_states or not path.name.endswith(STATE_ENDING)):
                self._uploads.add(path)

    def finish_uploads(self) -> None:
        """Waits for uploads, says what is not on the Hub, and removes what only they have kept."""
        if self._uploads is not None:
            self._uploads.finish()
        for path in self._pending_removal:
            if path.exists():
                self._remove(path)

    def _write(self, path: Path, write: Callable[[Path], None]) -> bool:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write(path)
        except (OSError, SafetensorError) as error:
            reason = f"{path} cannot be written: {getattr(error, 'strerror', None) or error}"
            self._failures.append(reason)
            logger.error("%s; check --output_dir and the space left", reason)
            return False
        self.written.append(path)
        self._to_upload.append(path)
        logger.info("saved %s", path)
        return True

    def raise_failures(self) -> None:
        """Raises `UserError` when something could not be written."""
        if self._failures:
            raise UserError(
                f"{len(self._failures)} of the run's files are missing: {listed(self._failures, 3)}",
                hint="make room or mend --output_dir"
                + (", then go on from the last state with --resume auto" if self._options.save_state else ""),
            )
