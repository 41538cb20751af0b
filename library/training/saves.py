"""Saved weights and states: their names, and the one place that writes them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from library.cli.atomic_files import atomic_path
from library.cli.errors import UserError
from library.training.method import TrainingMethod
from library.training.options import OutputOptions
from library.training.precision import DTYPES

logger = logging.getLogger(__name__)


def epoch_suffix(epoch: int) -> str:
    """`epoch` counted from 1: "-000004"."""
    return f"-{epoch:06d}"


def step_suffix(step: int) -> str:
    return f"-step{step:08d}"


class Saver:
    """Writes weights, and with `--save_state` the state beside them, and remembers what it wrote."""

    def __init__(self, options: OutputOptions, method: TrainingMethod):
        self._options = options
        self._method = method
        self._folder = Path(options.output_dir or ".")
        self.written: list[Path] = []

    def save(self, suffix: str, metadata: dict[str, str]) -> None:
        """Writes `<name><suffix>` with the method's ending. Raises `UserError` when the folder cannot be written to."""
        name = f"{self._options.output_name}{suffix}{self._method.file_suffix}"
        self._write(self._folder / name, lambda path: self._write_weights(path, metadata))

    def save_state(self, suffix: str, state: Callable[[Path], None]) -> None:
        """Lets `state` write `<name><suffix>-state`. Raises `UserError` as `save` does."""
        self._write(self.state_folder(suffix), state)

    def state_folder(self, suffix: str) -> Path:
        return self._folder / f"{self._options.output_name}{suffix}-state"

    def _write(self, path: Path, write: Callable[[Path], None]) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write(path)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"{path} cannot be written: {reason}", hint="check --output_dir and the space left"
            ) from None
        self.written.append(path)
        logger.info("saved %s", path)

    def _write_weights(self, path: Path, metadata: dict[str, str]) -> None:
        with atomic_path(path) as temporary:
            self._method.save(temporary, DTYPES[self._options.save_precision], metadata)
