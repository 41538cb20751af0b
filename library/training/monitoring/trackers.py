"""Trackers of curves and images. A new one is a row of `TRACKERS`.

Imports nothing heavy: the options take their choices from the table.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from library.cli.errors import UserError

if TYPE_CHECKING:
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    def scalars(self, values: Mapping[str, float], step: int) -> None: ...

    def image(self, name: str, image: Image.Image, step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoardTracker:
    """Writes TensorBoard event files."""

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(f"--log_with tensorboard: {error}", hint="pip install tensorboard") from None
        self._folder = folder
        self._writer: SummaryWriter | None = SummaryWriter(str(folder))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._scalar(name, value, step)

    def _scalar(self, name: str, value: float, step: int) -> None:
        self._write(lambda writer: writer.add_scalar(name, value, step))

    def image(self, name: str, image: Image.Image, step: int) -> None:
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


TRACKERS: dict[str, Callable[[Path], Tracker]] = {"tensorboard": TensorBoardTracker}


def make_tracker(name: str, logging_dir: str | None, prefix: str) -> tuple[Tracker, Path] | None:
    """The tracker of that name and its folder, `<logging_dir>/<prefix><time>`; None without a folder for logs."""
    if logging_dir is None:
        return None
    folder = Path(logging_dir) / f"{prefix}{time.strftime('%Y%m%d%H%M%S')}"
    return TRACKERS[name](folder), folder
