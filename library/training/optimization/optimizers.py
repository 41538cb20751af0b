"""Builds the optimizer that the options name. Names are the rows of `optimizer_table.OPTIMIZERS`.

Imports no torch before an optimizer is built or checked.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from library.cli.checks import Findings
from library.cli.errors import UserError, first_line, raise_together
from library.training.optimization.key_value_args import read_pairs, unfit_values, unknown_arguments
from library.training.optimization.optimizer_table import LRSupport, OptimizerRow, find_optimizer
from library.training.optimization.options import OptimizerOptions

if TYPE_CHECKING:
    import torch

    from library.training.method import ParamGroup

logger = logging.getLogger(__name__)

Groups = list[dict[str, Any]]

# usual learning rates of an optimizer that multiplies them with a step size of its own
FACTOR_RANGE = (0.1, 10.0)

FUSED_ON_CPU = {"torch.optim.Adam", "torch.optim.AdamW"}
CHOOSE_KERNELS = {"fused", "foreach", "capturable", "differentiable"}  # arguments that rule this out


def needs_adafactor_schedule(options: OptimizerOptions) -> bool:
    """Whether the optimizer sets its own learning rate, so that a schedule can only report it."""
    row = _row(options)
    return row.own_rate is not None and bool(_all_arguments(options).get(row.own_rate))


def optimizer_findings(options: OptimizerOptions, device: torch.device | str = "cpu") -> Findings:
    """A class that does not exist or is not supported, and invalid arguments, before a model is loaded.

    Builds the optimizer for a dummy parameter, and takes one step.
    """
    import torch

    probe = torch.nn.Parameter(torch.zeros(2, 2, device=device))
    rate = None if needs_adafactor_schedule(options) else options.learning_rate or 1.0
    optimizer = _build(options, [{"params": [probe], "lr": rate}])
    probe.grad = torch.ones_like(probe)
    with _optimizer_errors(options):
        if hasattr(optimizer, "train"):
            optimizer.train()
        optimizer.step()
    return ()


def rate_findings(options: OptimizerOptions, groups: Sequence[ParamGroup]) -> Findings:
    """Learning rates that the optimizer cannot or does not use, and unusual ones. Raises as `used_rates` does."""
    row, name = _row(options), options.optimizer
    if not row.adapts:
        return
    shown = ", ".join(f"{group.name} {group.learning_rate:g}" for group in groups)
    used = used_rates(options, groups)
    if not any(used):
        yield UserError(f"--optimizer_type {name} cannot train with learning rate 0", hint="give --learning_rate 1.0")
        return
    if used != [group.learning_rate for group in groups]:
        yield (
            f"--optimizer_type {name} uses one learning rate for all parameter groups: {max(used):g}, the first of"
            f" {shown}"
        )
    if not FACTOR_RANGE[0] <= max(used) <= FACTOR_RANGE[1]:
        yield (
            f"--optimizer_type {name} estimates its step size and multiplies it with the learning rate: about 1.0"
            f" is usual, not {shown} (--learning_rate)"
        )


def used_rates(options: OptimizerOptions, groups: Sequence[ParamGroup]) -> list[float]:
    """The learning rate that each parameter group is trained with.

    An optimizer that estimates one step size for all groups takes the first nonzero rate for every group; a group of
    rate 0 stays untrained. Raises `UserError` where the optimizer does not support that.
    """
    row, rates = _row(options), [group.learning_rate for group in groups]
    if not row.adapts:
        return rates
    first = next((rate for rate in rates if rate), 0.0)
    if row.rates is LRSupport.SAME and first and 0 in rates:
        raise UserError(
            f"--optimizer_type {options.optimizer} does not support a learning rate of 0 for one parameter group",
            hint="choose another optimizer, or give all groups the same learning rate",
        )
    return [first if rate else 0.0 for rate in rates]


def make_optimizer(options: OptimizerOptions, groups: Sequence[ParamGroup]) -> torch.optim.Optimizer:
    """The optimizer that the options name, each group at its own learning rate; logs which default arguments it adds.

    Raises `UserError` when the optimizer rejects its arguments or parameters. Check `rate_findings` first.
    """
    row, name = _row(options), options.optimizer
    given = _given_arguments(options)
    for key, value in row.added.items():
        if key not in given:
            logger.info("%s: %s=%s is added to --optimizer_args", name, key, value)
    is_own_rate = needs_adafactor_schedule(options)
    if is_own_rate:
        logger.info(
            "%s sets its own learning rate (%s=True): --learning_rate is not used",
            name,
            row.own_rate,
        )
    rates = [None] * len(groups) if is_own_rate else used_rates(options, groups)
    return _build(options, [{"params": group.params, "lr": rate} for group, rate in zip(groups, rates, strict=True)])


def optimizer_label(optimizer: torch.optim.Optimizer, options: OptimizerOptions) -> str:
    """The class and its arguments, as other programs show them: `torch.optim.sgd.SGD(momentum=0.9,nesterov=True)`."""
    kind = f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
    arguments = ",".join(f"{key}={value}" for key, value in _all_arguments(options).items())
    return f"{kind}({arguments})" if arguments else kind


def optimizer_class_path(options: OptimizerOptions) -> str:
    """The class of the optimizer, `module.Class`, by whichever name it was given."""
    return _row(options).path


def _row(options: OptimizerOptions) -> OptimizerRow:
    row = find_optimizer(options.optimizer)
    assert row is not None, "the options were checked"
    return row


def _all_arguments(options: OptimizerOptions) -> dict[str, Any]:
    return {**_row(options).added, **_given_arguments(options)}


def _given_arguments(options: OptimizerOptions) -> dict[str, Any]:
    arguments, problems = read_pairs("--optimizer_args", options.optimizer_args)
    assert not problems, "the options were checked"
    return arguments


def _build(options: OptimizerOptions, groups: Groups) -> torch.optim.Optimizer:
    kind = _load_class(options)
    parameters = inspect.signature(kind.__init__).parameters
    valid = [name for name in list(parameters)[2:] if name != "lr"]
    arguments = _all_arguments(options)
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        raise_together(unknown_arguments("--optimizer_args", arguments, valid, options.optimizer))
    raise_together(unfit_values("--optimizer_args", arguments, parameters))
    if "lr" in parameters:  # some keep the constructor's learning rate besides those of the groups
        rates = [group["lr"] for group in groups if group["lr"] is not None]
        arguments["lr"] = max(rates, default=None)
    # one call for all tensors; on a GPU PyTorch has that already ("foreach")
    if _row(options).path in FUSED_ON_CPU and not CHOOSE_KERNELS & arguments.keys() and _are_on_cpu(groups):
        arguments["fused"] = True
    with _optimizer_errors(options):
        return kind(groups, **arguments)


def _are_on_cpu(groups: Groups) -> bool:
    """Whether all parameters are plain tensors on the CPU (parameters of FSDP are `DTensor`s)."""
    import torch

    every = [parameter for group in groups for parameter in group["params"]]
    return all(type(each) is torch.nn.Parameter and each.device.type == "cpu" for each in every)


@contextlib.contextmanager
def _optimizer_errors(options: OptimizerOptions) -> Iterator[None]:
    """Turns an optimizer's error into a `UserError`, and what it prints into a log line."""
    name, printed = options.optimizer, io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    except (TypeError, ValueError, AssertionError, RuntimeError, ArithmeticError, ImportError) as error:
        raise UserError(
            f"--optimizer_type {name} failed with these arguments: {first_line(error)}",
            hint="check --optimizer_args and the learning rates, or choose another optimizer",
        ) from None
    if printed.getvalue().strip():
        logger.info("%s: %s", name, printed.getvalue().strip())


def _load_class(options: OptimizerOptions) -> type[torch.optim.Optimizer]:
    import torch

    row, name = _row(options), options.optimizer
    module, _, last = row.path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), last, None)
    except ImportError as error:
        hint = f"pip install -U {row.package}, or check the name" if row.package else "check the name"
        raise UserError(f"--optimizer_type {name} cannot be imported: {error}", hint=hint) from None
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        raise UserError(
            f"--optimizer_type {name}: {module} has no optimizer class {last}",
            hint="check the name, upper and lower case too",
        )
    closure = inspect.signature(kind.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UserError(
            f"--optimizer_type {name} computes the loss several times per step, which is not supported here",
            hint="choose another optimizer",
        )
    return kind
