"""Learning-rate schedules of `--lr_scheduler_type`: any scheduler class, built with `--lr_scheduler_args`."""

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

HOME = "torch.optim.lr_scheduler"  # module of classes that are named without one


def is_schedule_class(name: str) -> bool:
    """Whether a name is a scheduler class of `torch.optim.lr_scheduler`, or has the form `module.Class`.

    Read from torch's source, since importing it takes seconds; whether another module has the class is not checked.
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
    """The class `module.Class`, or the one of `torch.optim.lr_scheduler`. Raises `UserError` when there is none."""
    from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

    module_name, _, class_name = name.rpartition(".")
    try:
        module = importlib.import_module(module_name or HOME)
    except ImportError as error:
        raise UserError(
            f"--lr_scheduler_type {name} cannot be imported: {error}", hint="install its package, or check the name"
        ) from None
    found = getattr(module, class_name, None)
    if not (inspect.isclass(found) and issubclass(found, LRScheduler)):
        known = [
            key for key, value in vars(module).items() if inspect.isclass(value) and issubclass(value, LRScheduler)
        ]
        nearest = nearest_name(class_name, known)
        raise UserError(
            f"--lr_scheduler_type {name} is not a learning-rate scheduler class",
            hint=f"did you mean {nearest}?" if nearest else f"give a class of {HOME}, or module.Class",
        )
    if issubclass(found, ReduceLROnPlateau):
        raise UserError(
            f"--lr_scheduler_type {name} depends on a measured value, not on the step",
            hint="choose a schedule that is a function of the step",
        )
    return found


def check_schedule_class(name: str, arguments: Sequence[str]) -> type[LRScheduler]:
    """The class, after a check of its arguments. Raises `UserError` for unknown, missing or unfit arguments."""
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
    """Steps through the whole run. Raises `UserError` for a schedule that ends before the run, as OneCycleLR can."""
    import torch

    values, _ = read_pairs(FLAG, arguments)
    # with momentum, since some schedules cycle it with the learning rate
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    try:
        schedule = find_schedule_class(name)(optimizer, **values)
    except (TypeError, ValueError, KeyError, AttributeError):
        return  # it may need the real optimizer, with which it is built later
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the optimizer never steps
        for step in range(1, num_steps + 1):
            try:
                schedule.step()
            except (ValueError, ArithmeticError, LookupError) as error:
                raise UserError(
                    f"--lr_scheduler_type {name} ends with step {step} of {num_steps}: {first_line(error)}",
                    hint=f"give it as many steps as the run has, in {FLAG}",
                ) from None


def make_schedule_of_class(optimizer: torch.optim.Optimizer, name: str, arguments: Sequence[str]) -> LRScheduler:
    """An instance of the class. Raises `UserError` when its constructor fails, or its state cannot be reloaded."""
    found = check_schedule_class(name, arguments)
    values, _ = read_pairs(FLAG, arguments)
    try:
        schedule = found(optimizer, **values)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f"--lr_scheduler_type {name} cannot be created: {first_line(error)}", hint=f"check its arguments: {FLAG}"
        ) from None
    _check_state(name, schedule.state_dict())
    return schedule


def _check_state(name: str, state: dict[str, Any]) -> None:
    """Saves and loads the state once: otherwise an unreadable one would show only at `--resume`."""
    import torch

    kept = io.BytesIO()
    try:
        torch.save(state, kept)
        kept.seek(0)
        torch.load(kept, weights_only=True)
    except (pickle.PickleError, AttributeError, TypeError, RuntimeError) as error:
        raise UserError(
            f"--lr_scheduler_type {name} has a state that cannot be saved and loaded: {first_line(error)}",
            hint="its state_dict() may hold numbers, strings, lists, dicts and tensors only",
        ) from None
