"""Resuming: finding the state to resume from, and checking that the run can resume from it. Imports no torch."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from library.cli.atomic_files import restore_folder, set_aside_targets
from library.cli.errors import UserError
from library.cli.options import option_fields
from library.cli.parser import Options
from library.training.checkpoints.saved_names import saved_under
from library.training.checkpoints.states import StateHeader, check_files, read_state_header
from library.training.optimization.lr_schedules import schedule_kind
from library.training.optimization.optimizers import optimizer_class_path
from library.training.optimization.options import OptimizerOptions
from library.training.step_plan import Position

logger = logging.getLogger(__name__)

AUTO = "auto"


@dataclass(frozen=True)
class FoundState:
    """A state that is complete and undamaged."""

    folder: str
    header: StateHeader

    @property
    def position(self) -> Position:
        header = self.header
        return Position(header.epoch, header.step_in_epoch, header.global_step, header.is_epoch_end_due)


def read_whole_state(folder: str) -> FoundState:
    """The state in a folder. Raises `UserError` when the folder is not a state, or is damaged."""
    header = read_state_header(folder)
    check_files(folder, header)
    return FoundState(folder, header)


def newest_state(output_dir: str, name: str | None) -> FoundState | None:
    """The undamaged state of this output name with the most steps; damaged ones are logged and skipped."""
    folder = Path(output_dir)
    for target in set_aside_targets(folder):
        restore_folder(target)
    found = []
    for saved in saved_under(folder, name):
        if saved.is_state:
            try:
                header = read_state_header(saved.path)
            except UserError as error:
                logger.warning("%s; skipped", error.message)
                continue
            found.append((header.global_step, saved.path.stat().st_mtime_ns, saved.path, header))
    for _, _, path, header in sorted(found, key=lambda each: each[:2], reverse=True):
        try:
            check_files(path, header)
        except UserError as error:
            logger.warning("%s; the previous state is used", error.message)
            continue
        return FoundState(str(path), header)
    return None


def option_values(options: Options) -> dict[str, Any]:
    """All options of a run by name, without secrets, as JSON values."""
    values = {
        field.name: getattr(group, field.name)
        for group in options
        for field in option_fields(type(group))
        if not field.spec.secret
    }
    return json.loads(json.dumps(values, default=str))


def continuing_problems(header: StateHeader, options: Options) -> Iterator[UserError]:
    """Errors where the options make it a different run, which cannot resume from the state."""
    optimizer = options[OptimizerOptions]
    for flag, then, now in (
        ("--optimizer_type", header.optimizer, optimizer_class_path(optimizer)),
        ("--lr_scheduler", header.lr_schedule, schedule_kind(optimizer)),
    ):
        if then != now:
            yield _different_run(flag, then, now)
    for group in options:
        for field in option_fields(type(group)):
            now = json.loads(json.dumps(getattr(group, field.name), default=str))
            then = header.options.get(field.name, now)
            if field.spec.on_resume == "same" and then != now:
                yield _different_run(field.flag, then, now)


def _different_run(flag: str, then: Any, now: Any) -> UserError:
    before = f"give {flag}" if then is True else f"give {flag} {_shown(then)}" if then else f"leave {flag} out"
    return UserError(
        f"--resume: the saved run has {flag} {_shown(then)}, this one {_shown(now)}",
        hint=f"{before} to resume, or start a new run without --resume",
    )


def _shown(value: Any) -> str:
    if value in (None, [], False):
        return "off" if value is False else "not given"
    return "on" if value is True else " ".join(map(str, value)) if isinstance(value, list) else str(value)


def differences(header: StateHeader, options: Options, versions: Mapping[str, str], data: str) -> Iterator[str]:
    """What differs from the saved run, one line each."""
    for group in options:
        for field in option_fields(type(group)):
            if field.spec.secret or field.spec.on_resume == "unimportant":
                continue
            now = json.loads(json.dumps(getattr(group, field.name), default=str))
            then = header.options.get(field.name, now)
            if then != now:
                kept = "; the saved value is kept" if field.spec.on_resume == "kept" else ""
                yield f"{field.flag} was {_shown(then)} in the saved run and is {_shown(now)} now{kept}"
    if header.data != data:
        yield "images, captions or dataset settings differ from those of the saved run"
    for package, version in versions.items():
        then = header.versions.get(package, "absent")
        if then != version:
            yield f"{package} was {then} in the saved run and is {version} now: results can differ in their last bits"
