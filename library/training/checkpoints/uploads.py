"""Uploads of a run's saves: in the order of the saves, tried again, and never a reason to stop training."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path

from library.cli.errors import listed
from library.training.checkpoints.hub_upload import WAITS, HubRepository
from library.training.checkpoints.options import HubOptions
from library.training.signals import signals_end_at_once

logger = logging.getLogger(__name__)

_LONGEST_WAIT_SECONDS = 60  # for the upload of a save that is to be removed; other processes wait meanwhile


class Uploads:
    """Uploads what it is given, at once or in one background thread."""

    def __init__(
        self, repository: HubRepository, *, in_background: bool, with_states: bool, waits: Sequence[float] = WAITS
    ):
        """waits: seconds before the second try of an upload, before the third, and so on."""
        self.with_states = with_states
        self._repository = repository
        self._in_background = in_background
        self._waits = waits
        self._pending: list[Path] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._failed: list[Path] = []

    def add(self, path: Path) -> None:
        """Uploads a file or folder, or lets it be uploaded when those before it are."""
        if not self._in_background:
            self._upload(path)
            return
        with self._changed:
            self._pending.append(path)
            self._changed.notify_all()
        if self._thread is None:  # a daemon: a program that is to end at once does not wait for it
            self._thread = threading.Thread(target=self._work, name="uploads", daemon=True)
            self._thread.start()

    def is_done_with(self, path: Path, seconds: float = _LONGEST_WAIT_SECONDS) -> bool:
        """Waits for the upload of `path`, where one is pending; whether it has ended by then."""
        with self._changed:
            return self._changed.wait_for(lambda: path not in self._pending, seconds)

    def finish(self) -> None:
        """Waits for all uploads, and says which files are not on the Hub."""
        with self._changed:
            num_pending = len(self._pending)
        if num_pending:
            logger.info("waiting for %d uploads to %s; Ctrl-C ends at once", num_pending, self._repository)
        with signals_end_at_once(), self._changed:
            self._changed.wait_for(lambda: not self._pending)
        if self._failed:
            names = [path.name for path in self._failed]
            logger.error("%d of the run's files are not on the Hub: %s", len(names), listed(names, 3))

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending)
                path = self._pending[0]
            self._upload(path)
            with self._changed:
                self._pending.pop(0)
                self._changed.notify_all()

    def _upload(self, path: Path) -> None:
        repository = self._repository
        try:
            repository.try_again(path, self._waits)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is said, and training goes on
            if path not in self._failed:
                self._failed.append(path)
            logger.error(
                "%s is not on the Hub: %s; the file itself is whole, upload it with: %s",
                path, repository.reason(error), repository.upload_command(path),
            )  # fmt: skip
            return
        if path in self._failed:
            self._failed.remove(path)
        logger.info("uploaded %s to %s/%s", path, repository, repository.path_of(path))


def make_uploads(options: HubOptions, num_processes: int) -> Uploads | None:
    """Prepares the repository that the options name; None where they name none. Raises `UserError`.

    In several processes uploads are always in the background: the others would wait for a slow one, and give up.
    """
    if options.huggingface_repo_id is None:
        return None
    repository = HubRepository(options)
    repository.check_access()
    return Uploads(
        repository,
        in_background=options.async_upload or num_processes > 1,
        with_states=options.save_state_to_huggingface,
    )
