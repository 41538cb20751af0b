"""Options of logging: trackers and the console."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from library.cli.documents import read_toml
from library.cli.errors import UserError, nearest_name
from library.cli.options import FREE_TEXT, option
from library.training.monitoring.trackers import NEED_FOLDER, TRACKERS

_ALL = "all"
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_FOR_WANDB = ("wandb_run_name", "wandb_api_key")
_FOR_TRACKERS = ("log_with", "log_prefix", "log_tracker_name", "log_tracker_config", "log_config")


@dataclass(frozen=True)
class LoggingOptions:
    """Trackers and the console. None of it changes the trained weights."""

    GROUP: ClassVar[str] = "Logging"

    logging_dir: str | None = option(help="folder for logs; turns logging on", metavar="FOLDER")
    log_with: str = option(
        "tensorboard", help="tracker; wandb needs no --logging_dir", choices=(*TRACKERS, _ALL), off=(False, "none")
    )
    log_prefix: str = option("", help="prefix of the log's sub-folder name", metavar=FREE_TEXT)
    log_tracker_name: str | None = option(
        help="name of the project at wandb (default: the script's), or of a sub-folder for tensorboard",
        metavar=FREE_TEXT,
        on_resume="unimportant",
    )
    log_tracker_config: str | None = option(
        help="TOML file of arguments for the tracker, in a table of its name: [wandb] or [tensorboard]",
        metavar="FILE",
        on_resume="unimportant",
    )
    log_config: bool = option(
        False, help="log the options of the run to the tracker, without secrets", on_resume="unimportant"
    )
    wandb_run_name: str | None = option(
        help="name of the run at wandb (default: --output_name)", metavar=FREE_TEXT, on_resume="unimportant"
    )
    wandb_api_key: str | None = option(
        help="access key of wandb (default: of `wandb login`)", metavar="KEY", secret=True, on_resume="unimportant"
    )
    console_log_level: str | None = option(
        help="minimum log level of the lines that the console shows (default: INFO)",
        choices=_LEVELS,
        on_resume="unimportant",
    )
    console_log_file: str | None = option(
        help="file that the lines are appended to, instead of the console", metavar="FILE", on_resume="unimportant"
    )
    console_log_simple: bool = option(
        False, help="plain lines on the console", inert="lines are always plain", on_resume="unimportant"
    )

    @property
    def trackers(self) -> tuple[str, ...]:
        """The rows of `TRACKERS` that are used. Those that write files need `--logging_dir`."""
        wanted = tuple(TRACKERS) if self.log_with == _ALL else (self.log_with,)
        return tuple(name for name in wanted if self.logging_dir is not None or name not in NEED_FOLDER)

    def tracker_arguments(self) -> dict[str, dict[str, Any]]:
        """The tables of `--log_tracker_config`. Raises `UserError` for what is none."""
        if self.log_tracker_config is None:
            return {}
        tables = read_toml(self.log_tracker_config, "--log_tracker_config")
        for name, table in tables.items():
            if name not in TRACKERS or not isinstance(table, dict):
                nearest = nearest_name(name, TRACKERS)
                hint = f"did you mean [{nearest}]?" if nearest else "write tables [wandb] and [tensorboard]"
                raise UserError(f"--log_tracker_config {self.log_tracker_config}: {name} is no tracker's table", hint)
        return tables

    def check(self) -> Iterator[UserError | str]:
        """What a tracker lacks, and options that have no effect."""
        trackers, usual = self.trackers, LoggingOptions()

        def given(names: tuple[str, ...]) -> str:
            flags = [f"--{name}" for name in names if getattr(self, name) != getattr(usual, name)]
            return " and ".join(flags)

        unused = given(_FOR_TRACKERS)
        if unused and not trackers:
            yield f"{unused} without --logging_dir: no curves are written"
        elif self.log_with == _ALL and self.logging_dir is None:
            yield "--log_with all without --logging_dir: curves go to wandb alone"
        if "wandb" not in trackers:
            if given(_FOR_WANDB):
                yield f"{given(_FOR_WANDB)} without --log_with wandb: does nothing"
        else:
            yield from self._wandb_problems()
        if trackers:
            try:
                self.tracker_arguments()
            except UserError as error:
                yield error

    def _wandb_problems(self) -> Iterator[UserError]:
        if importlib.util.find_spec("wandb") is None:
            yield UserError("--log_with wandb: the package is not installed", hint="pip install wandb")
        elif self.wandb_api_key is None and not _has_wandb_key():
            yield UserError(
                "--log_with wandb: there is no access key",
                hint="run wandb login, give --wandb_api_key, or set WANDB_MODE=offline",
            )


def _has_wandb_key() -> bool:
    """Whether wandb may find an access key, or is told to need none."""
    if any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE")):
        return True
    own = (os.environ.get("NETRC", ""), "~/.netrc", "~/_netrc", "wandb/settings", "~/.config/wandb/settings")
    files = [Path(name).expanduser() for name in own if name]
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in files if file.is_file()]
    return any("machine" in text or "mode" in text for text in texts)
