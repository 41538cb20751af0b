"""Pruning of earlier checkpoints and states that `--save_last_n_*` does not keep, and of what a killed run left."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from library.cli.atomic_files import remove_whole, restore_folder, set_aside_targets, temporary_target
from library.training.checkpoints.options import OutputOptions
from library.training.checkpoints.saved_names import Saved, saved_as, saved_under

logger = logging.getLogger(__name__)

_LEFT_BEHIND_SECONDS = 3600  # older unfinished files belong to a run that was killed


@dataclass(frozen=True)
class Retention:
    """Retention of earlier checkpoints, or of states: how many are kept; None keeps all."""

    last_epochs: int | None = None  # number of epoch checkpoints
    last_steps: int | None = None  # in steps

    def expires(self, saved: Saved, when: str, number: int, every: int) -> bool:
        """Whether to prune an earlier checkpoint once epoch or step `number` is saved; `every`: save interval."""
        if saved.when != when:
            return False
        if when == "epoch":
            return self.last_epochs is not None and saved.number <= number - every * self.last_epochs
        return self.last_steps is not None and saved.number < number - self.last_steps


class Pruner:
    """Removes earlier checkpoints and states of a run, those that are still uploaded at its end."""

    def __init__(self, options: OutputOptions, epochs_between: int | None, is_uploaded: Callable[[Path], bool]):
        """epochs_between: epochs from one epoch checkpoint to the next. is_uploaded: no upload needs the path now."""
        self._options = options
        self._folder = Path(options.output_dir or ".")
        self._every = {"epoch": epochs_between or 1, "step": options.save_every_n_steps or 1}
        self._is_uploaded = is_uploaded
        self._pending: list[Path] = []

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
                if self._is_uploaded(saved.path):
                    _remove(saved.path)
                else:
                    self._pending.append(saved.path)

    def finish(self) -> None:
        """Prunes what was kept for its upload."""
        for path in self._pending:
            if path.exists():
                _remove(path)


def _remove(path: Path) -> None:
    try:
        remove_whole(path)
        logger.info("removed %s", path)
    except OSError as error:
        logger.warning("%s cannot be removed: %s", path, error.strerror)


def clear_up(folder: Path, name: str | None) -> None:
    """Finishes what a run of this output name left half done in `folder` when it was killed while saving.

    A folder that was being replaced is put back. Temporary files and folders go once they are so old that no run can
    be writing them: those with a name that this program gives to all files, or to folders of this output name.
    """
    for target in set_aside_targets(folder):
        if saved_as(target, name) is not None:
            restore_folder(target)
    for path in folder.glob(".*"):
        stands_for = temporary_target(path.name)
        if stands_for is None or (stands_for and saved_as(path.with_name(stands_for), name) is None):
            continue
        try:
            if time.time() - path.stat().st_mtime > _LEFT_BEHIND_SECONDS:
                remove_whole(path)
        except OSError:  # it does no harm
            continue
