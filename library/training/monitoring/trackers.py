"""Trackers of curves and images. A new one is a row of `TRACKERS`.

Imports nothing heavy: the options take their choices from the table.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from library.cli.errors import UserError, first_line
from library.cli.launcher import command_line

if TYPE_CHECKING:
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrackerSettings:
    """What a tracker is made with.

    `folder`: this run's own, None without `--logging_dir`. `project`, `run`: names. `arguments`: further keyword
    arguments of the writer. `options`: those of the run, to be shown beside the curves.
    """

    folder: Path | None
    project: str
    run: str | None = None
    api_key: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


class Tracker(Protocol):
    @property
    def found_at(self) -> str:
        """Where the curves are, and how they are shown."""

    def scalars(self, values: Mapping[str, float], step: int) -> None: ...

    def image(self, name: str, image: Image.Image, step: int, caption: str) -> None: ...

    def close(self) -> None: ...


class TensorBoardTracker:
    """Writes TensorBoard event files."""

    def __init__(self, settings: TrackerSettings):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(f"--log_with tensorboard: {error}", hint="pip install tensorboard") from None
        assert settings.folder is not None
        self._folder = settings.folder
        try:
            self._writer: SummaryWriter | None = SummaryWriter(str(self._folder), **settings.arguments)
        except TypeError as error:
            raise _wrong_arguments("tensorboard", error) from None
        if settings.options:
            rows = "\n".join(f"| {name} | {value} |" for name, value in settings.options.items())
            self._write(lambda writer: writer.add_text("options", f"| option | value |\n|---|---|\n{rows}", 0))

    @property
    def found_at(self) -> str:
        return (
            f"{self._folder} (curves; {command_line(['tensorboard', '--logdir', str(self._folder.parent)])} shows them)"
        )

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._scalar(name, value, step)

    def _scalar(self, name: str, value: float, step: int) -> None:
        self._write(lambda writer: writer.add_scalar(name, value, step))

    def image(self, name: str, image: Image.Image, step: int, caption: str) -> None:
        import numpy as np

        self._write(lambda writer: writer.add_image(name, np.asarray(image), step, dataformats="HWC"))

    def close(self) -> None:
        self._write(lambda writer: writer.close())

    def _write(self, write: Callable[[SummaryWriter], None]) -> None:
        """Logs a write error once and stops writing: curves are no reason to end a run."""
        if self._writer is None:
            return
        try:
            write(self._writer)
        except OSError as error:
            self._writer = None
            logger.error("no more curves are written to %s: %s", self._folder, error.strerror or error)


class WandbTracker:
    """Sends curves and images to Weights & Biases, or keeps them in a folder (`WANDB_MODE=offline`)."""

    def __init__(self, settings: TrackerSettings):
        import wandb

        folder = settings.folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        arguments = {"project": settings.project, "name": settings.run, **settings.arguments}
        try:
            self._run: Any = wandb.init(
                dir=None if folder is None else str(folder),
                config=dict(settings.options),
                settings=wandb.Settings(console="off", silent=True, api_key=settings.api_key),
                **arguments,
            )
        except TypeError as error:
            raise _wrong_arguments("wandb", error) from None
        except Exception as error:  # noqa: BLE001 - of a service and its client
            raise UserError(
                f"--log_with wandb: {first_line(error)}",
                hint="check --wandb_api_key and the network; WANDB_MODE=offline keeps the curves in a folder",
            ) from None
        self._image = wandb.Image
        folder_of_run = str(Path(self._run.dir).parent)
        if self._run.offline:
            command = command_line(["wandb", "sync", folder_of_run])
            self._found_at = f"{folder_of_run} (curves; {command} uploads them)"
        else:
            self._found_at = f"{self._run.url} (curves)"

    @property
    def found_at(self) -> str:
        return self._found_at

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._log(dict(values), step)

    def image(self, name: str, image: Image.Image, step: int, caption: str) -> None:
        self._log({name: self._image(image, caption=caption)}, step)

    def close(self) -> None:
        self._guarded(lambda run: run.finish(), "the run at wandb is not closed")

    def _log(self, values: dict[str, Any], step: int) -> None:
        self._guarded(lambda run: run.log(values, step=step), "no more curves are sent to wandb")

    def _guarded(self, write: Callable[[Any], object], failure: str) -> None:
        """Logs an error once and stops sending: curves are no reason to end a run."""
        if self._run is None:
            return
        try:
            write(self._run)
        except Exception as error:  # noqa: BLE001 - of a service and its client
            self._run = None
            logger.error("%s: %s", failure, first_line(error))


class Trackers:
    """Several trackers as one."""

    def __init__(self, trackers: Sequence[Tracker]):
        self._trackers = trackers

    @property
    def found_at(self) -> str:
        return "\n  ".join(tracker.found_at for tracker in self._trackers)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for tracker in self._trackers:
            tracker.scalars(values, step)

    def image(self, name: str, image: Image.Image, step: int, caption: str) -> None:
        for tracker in self._trackers:
            tracker.image(name, image, step, caption)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


TRACKERS: dict[str, Callable[[TrackerSettings], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
}
NEED_FOLDER = ("tensorboard",)


def make_tracker(names: Sequence[str], settings: Mapping[str, TrackerSettings]) -> Tracker | None:
    """The trackers of these names as one; None without any. Raises `UserError` where one cannot be started."""
    trackers = [TRACKERS[name](settings[name]) for name in names]
    return Trackers(trackers) if trackers else None


def run_folder(logging_dir: str | None, prefix: str) -> Path | None:
    """The folder of a run's logs, `<logging_dir>/<prefix><time>`."""
    return None if logging_dir is None else Path(logging_dir) / f"{prefix}{time.strftime('%Y%m%d%H%M%S')}"


def _wrong_arguments(name: str, error: TypeError) -> UserError:
    return UserError(
        f"--log_tracker_config, [{name}]: {first_line(error)}", hint="leave it out, or see the tracker's documents"
    )
