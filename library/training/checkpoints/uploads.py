"""Uploads of checkpoints and states: in order, with retries; a failed upload never stops training."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path

from library.cli.errors import listed, plural
from library.training.checkpoints.hub_upload import WAITS, HubRepository
from library.training.checkpoints.options import HubOptions
from library.training.signals import signals_end_at_once

logger = logging.getLogger(__name__)

_LONGEST_WAIT_SECONDS = 60  # for the upload of a checkpoint to be pruned; other processes wait meanwhile


class Uploads:
    """Uploads files and folders, synchronously or in one background thread."""

    def __init__(
        self, repository: HubRepository, *, in_background: bool, with_states: bool, waits: Sequence[float] = WAITS
    ):
        """waits: seconds before the second attempt at an upload, before the third, and so on."""
        self.with_states = with_states
        self._repository = repository
        self._in_background = in_background
        self._waits = waits
        self._pending: list[Path] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._failed: list[Path] = []

    def add(self, path: Path) -> None:
        """Uploads a file or folder, or queues it for the background thread."""
        if not self._in_background:
            self._upload(path)
            return
        with self._changed:
            self._pending.append(path)
            self._changed.notify_all()
        if self._thread is None:  # a daemon: a program that is stopped does not wait for it
            self._thread = threading.Thread(target=self._work, name="uploads", daemon=True)
            self._thread.start()

    def is_done_with(self, path: Path, seconds: float = _LONGEST_WAIT_SECONDS) -> bool:
        """Waits for a pending upload of `path`; returns whether it has finished or failed by then."""
        with self._changed:
            return self._changed.wait_for(lambda: path not in self._pending, seconds)

    def finish(self) -> None:
        """Waits for all uploads, and logs which failed."""
        with self._changed:
            num_pending = len(self._pending)
        if num_pending:
            uploads = plural(num_pending, "upload")
            logger.info("waiting for %s to %s; Ctrl-C exits immediately", uploads, self._repository)
        with signals_end_at_once(), self._changed:
            self._changed.wait_for(lambda: not self._pending)
        if self._failed:
            names = [path.name for path in self._failed]
            files = plural(len(names), "file of the run was", "files of the run were")
            logger.error("%s not uploaded to the Hub: %s", files, listed(names, 3))

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
        except Exception as error:  # noqa: BLE001 - any error is logged, and training continues
            if path not in self._failed:
                self._failed.append(path)
            logger.error(
                "%s was not uploaded to the Hub: %s; the local file is complete, upload it with: %s",
                path, repository.reason(error), repository.upload_command(path),
            )  # fmt: skip
            return
        if path in self._failed:
            self._failed.remove(path)
        logger.info("uploaded %s to %s/%s", path, repository, repository.path_of(path))


def make_uploads(options: HubOptions, num_processes: int) -> Uploads | None:
    """The uploads to the repository that the options name, after a check of write access; None without one.

    Raises `UserError`. With several processes uploads always run in the background: a slow one would make the other
    processes wait and time out.
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
