"""Options of logging: trackers and the console."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from library.cli.options import FREE_TEXT, NOT_YET, option
from library.training.monitoring.trackers import TRACKERS

_ALL_TRACKERS = ("tensorboard", "wandb", "all")
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


@dataclass(frozen=True)
class LoggingOptions:
    """Trackers and the console. None of it changes the trained weights."""

    GROUP: ClassVar[str] = "Logging"

    logging_dir: str | None = option(help="folder for logs; turns logging on", metavar="FOLDER")
    log_with: str = option("tensorboard", help="tracker", choices=_ALL_TRACKERS, off=(False, "none"))
    log_prefix: str = option("", help="prefix of the log's sub-folder name", metavar=FREE_TEXT)
    log_tracker_name: str | None = option(
        help="name of the tracker's project", metavar=FREE_TEXT, inert=NOT_YET, on_resume="unimportant"
    )
    log_tracker_config: str | None = option(
        help="TOML file of settings for the tracker", metavar="FILE", inert=NOT_YET, on_resume="unimportant"
    )
    log_config: bool = option(
        False, help="log the options of the run to the tracker", inert=NOT_YET, on_resume="unimportant"
    )
    wandb_run_name: str | None = option(
        help="name of the run at wandb", metavar=FREE_TEXT, inert=NOT_YET, on_resume="unimportant"
    )
    wandb_api_key: str | None = option(
        help="access key of wandb", metavar="KEY", inert=NOT_YET, secret=True, on_resume="unimportant"
    )
    console_log_level: str | None = option(
        help="minimum log level of the lines that the console shows", choices=_LEVELS, inert=NOT_YET,
        on_resume="unimportant",
    )  # fmt: skip
    console_log_file: str | None = option(
        help="file that the console's lines go to", metavar="FILE", inert=NOT_YET, on_resume="unimportant"
    )
    console_log_simple: bool = option(False, help="plain lines on the console", inert=NOT_YET, on_resume="unimportant")

    @property
    def tracker(self) -> str:
        """The row of `TRACKERS` that is used."""
        return self.log_with if self.log_with in TRACKERS else "tensorboard"

    def check(self) -> Iterator[str]:
        """Options that do something else than they say."""
        if self.logging_dir is None:
            usual = LoggingOptions()
            given = [f"--{name}" for name in ("log_with", "log_prefix") if getattr(self, name) != getattr(usual, name)]
            if given:
                yield f"{' and '.join(given)} without --logging_dir: no curves are written"
        if self.log_with != self.tracker and self.logging_dir is not None:
            yield f"--log_with {self.log_with}: wandb is not implemented yet; curves go to {self.tracker}"
