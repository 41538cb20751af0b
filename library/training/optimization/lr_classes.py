"""Learning-rate schedules of `--lr_scheduler_type`: any class, made with `--lr_scheduler_args`."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import io
import pickle
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.cli.errors import UserError, first_line, nearest_name, raise_together
from library.training.optimization.key_value_args import read_pairs, unfit_values
from library.training.optimization.lr_curves import FLAG

if TYPE_CHECKING:
    import torch
    from torch.optim.lr_scheduler import LRScheduler

HOME = "torch.optim.lr_scheduler"  # of the classes that are named without a module


def is_schedule_class(name: str) -> bool:
    """Whether a name is that of a class: one of `torch.optim.lr_scheduler`, or any `module.Class`.

    Read from torch's source, since importing it takes seconds; whether another module has the class is not looked at.
    """
    if "." in name:
        return re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", name) is not None
    found = importlib.util.find_spec("torch")
    if found is None or not found.submodule_search_locations:
        return False
    source = Path(found.submodule_search_locations[0], "optim", "lr_scheduler.py").read_text(encoding="utf-8")
    classes = (node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    return any(name == known for known in classes if known != "LRScheduler" and not known.startswith("_"))


def find_schedule_class(name: str) -> type[LRScheduler]:
    """The class `module.Class`, or that of torch's schedules. Raises `UserError` when there is none."""
    from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

    module_name, _, class_name = name.rpartition(".")
    try:
        module = importlib.import_module(module_name or HOME)
    except ImportError as error:
        raise UserError(
            f"--lr_scheduler_type {name} cannot be imported: {error}", hint="install what it needs, or mend the name"
        ) from None
    found = getattr(module, class_name, None)
    if not (inspect.isclass(found) and issubclass(found, LRScheduler)):
        known = [
            key for key, value in vars(module).items() if inspect.isclass(value) and issubclass(value, LRScheduler)
        ]
        nearest = nearest_name(class_name, known)
        raise UserError(
            f"--lr_scheduler_type {name} is no learning-rate schedule",
            hint=f"did you mean {nearest}?" if nearest else f"give a class of {HOME}, or module.Class",
        )
    if issubclass(found, ReduceLROnPlateau):
        raise UserError(
            f"--lr_scheduler_type {name} follows a measured value, not the steps",
            hint="choose a schedule that is a function of the step",
        )
    return found


def check_schedule_class(name: str, arguments: Sequence[str]) -> type[LRScheduler]:
    """The class, whose constructor takes the arguments. Raises `UserError` for what it does not take, or lacks."""
    found = find_schedule_class(name)
    values, problems = read_pairs(FLAG, arguments)
    raise_together(problems)
    try:
        inspect.signature(found).bind(None, **values)
    except TypeError as error:
        takes = ", ".join(list(inspect.signature(found).parameters)[1:])
        raise UserError(f"{FLAG}: {name}: {error}", hint=f"it takes {takes}") from None
    raise_together(unfit_values(FLAG, values, inspect.signature(found).parameters))
    return found


def check_length(name: str, arguments: Sequence[str], num_steps: int) -> None:
    """Steps through the whole run. Raises `UserError` for a schedule that ends before it, as OneCycleLR can."""
    import torch

    values, _ = read_pairs(FLAG, arguments)
    # with a momentum, since some let it go up and down with the rate
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    try:
        schedule = find_schedule_class(name)(optimizer, **values)
    except (TypeError, ValueError, KeyError, AttributeError):
        return  # it may need the optimizer of the run, which it is made for later
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this optimizer never steps
        for step in range(1, num_steps + 1):
            try:
                schedule.step()
            except (ValueError, ArithmeticError, LookupError) as error:
                raise UserError(
                    f"--lr_scheduler_type {name} ends with step {step} of {num_steps}: {first_line(error)}",
                    hint=f"let {FLAG} give it as many steps as the run has",
                ) from None


def make_schedule_of_class(optimizer: torch.optim.Optimizer, name: str, arguments: Sequence[str]) -> LRScheduler:
    """A schedule of the class. Raises `UserError` when it refuses, or has a state that a later run could not read."""
    found = check_schedule_class(name, arguments)
    values, _ = read_pairs(FLAG, arguments)
    try:
        schedule = found(optimizer, **values)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f"--lr_scheduler_type {name} cannot be made: {first_line(error)}", hint=f"look at its arguments: {FLAG}"
        ) from None
    _check_state(name, schedule.state_dict())
    return schedule


def _check_state(name: str, state: dict[str, Any]) -> None:
    """A state that cannot be read again would be found out on the day of need."""
    import torch

    kept = io.BytesIO()
    try:
        torch.save(state, kept)
        kept.seek(0)
        torch.load(kept, weights_only=True)
    except (pickle.PickleError, AttributeError, TypeError, RuntimeError) as error:
        raise UserError(
            f"--lr_scheduler_type {name} has a state that cannot be saved and read again: {first_line(error)}",
            hint="give the class a state_dict() of numbers, texts, lists, dicts and tensors",
        ) from None
