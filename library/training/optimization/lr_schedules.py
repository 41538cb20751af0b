"""Builds the learning-rate schedule that the options name, and checks it against the run. Curves: `lr_curves`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from library.cli.checks import Findings
from library.cli.errors import UserError, plural
from library.training.optimization.lr_curves import SCHEDULES, LRCurve, read_schedule_args
from library.training.optimization.optimizers import needs_adafactor_schedule
from library.training.optimization.options import OptimizerOptions

if TYPE_CHECKING:
    import torch
    from torch.optim.lr_scheduler import LRScheduler

logger = logging.getLogger(__name__)

# options that only some schedules use, and their defaults
_CURVE_OPTIONS = {
    "lr_decay_steps": 0,
    "lr_scheduler_num_cycles": 1,
    "lr_scheduler_power": 1.0,
    "lr_scheduler_timescale": None,
    "lr_scheduler_min_lr_ratio": None,
}

_DEFAULT_LR_END = 1e-7  # of `polynomial`


def steps_of(share: int | float, num_steps: int) -> int:
    """A number of steps: an int as it is, a float (a value below 1, or a percentage) as a fraction of all steps."""
    return int(share * num_steps) if isinstance(share, float) else share


def warmup_steps(options: OptimizerOptions, num_steps: int) -> int:
    """The number of warm-up steps."""
    return steps_of(options.lr_warmup_steps, num_steps)


def schedule_name(options: OptimizerOptions) -> str:
    """The schedule in use: `adafactor` for an optimizer that sets its own learning rate."""
    return "adafactor" if needs_adafactor_schedule(options) else options.schedule_class or options.lr_scheduler


def schedule_kind(options: OptimizerOptions) -> str:
    """The kind of schedule that a state can be loaded into: all named schedules are one kind, each class its own."""
    name = schedule_name(options)
    return name if name == "adafactor" or options.schedule_class else "a named schedule"


def lr_schedule_findings(options: OptimizerOptions, num_steps: int) -> Findings:
    """Options that the schedule does not use, and where it does not fit a run of `num_steps`."""
    name = schedule_name(options)
    reads = SCHEDULES[name].reads if name in SCHEDULES else ()
    for option, default in _CURVE_OPTIONS.items():
        if getattr(options, option) != default and option not in reads:
            yield f"--{option} has no effect: --lr_scheduler {name} does not use it"
    if name == "adafactor" and not needs_adafactor_schedule(options):
        yield UserError(
            "--lr_scheduler adafactor needs --optimizer_type AdaFactor with relative_step=True",
            hint="choose another --lr_scheduler, constant for instance",
        )
    if name != options.lr_scheduler and name == "adafactor":
        logger.info("the optimizer sets its own learning rate: --lr_scheduler adafactor is used")
        if options.lr_warmup_steps:
            yield "--lr_warmup_steps has no effect: the optimizer sets its own learning rate"
    if options.schedule_class:
        from library.training.optimization.lr_classes import check_length, check_schedule_class

        check_schedule_class(options.schedule_class, options.lr_scheduler_args)
        check_length(options.schedule_class, options.lr_scheduler_args, num_steps)
    warmup, decay = warmup_steps(options, num_steps), steps_of(options.lr_decay_steps, num_steps)
    if name in SCHEDULES and SCHEDULES[name].has_warmup and warmup >= num_steps:
        yield f"--lr_warmup_steps {warmup}: the run ends after {plural(num_steps, 'step')}, before the warm-up does"
    if "lr_decay_steps" in reads and warmup + decay > num_steps:
        yield UserError(
            f"--lr_warmup_steps {warmup} and --lr_decay_steps {decay} are more than the run's"
            f" {plural(num_steps, 'step')}",
            hint="lower one of them, or give fractions of all steps, such as 0.1",
        )


def lr_factor(options: OptimizerOptions, num_steps: int, base_rate: float = 1.0) -> Callable[[int], float]:
    """The factor of the learning rate `base_rate`, as a function of the optimizer step, counted from 0."""
    arguments, problems = read_schedule_args(options.lr_scheduler, options.lr_scheduler_args)
    assert not problems, "the options were checked"
    schedule = SCHEDULES[options.lr_scheduler]
    lr_end = arguments.get("lr_end", _DEFAULT_LR_END)
    # the argument num_cycles counts whole periods (0.5 falls from 1 to 0), the option half periods
    half_periods = 2 * arguments.get("num_cycles", 0.5)
    curve = LRCurve(
        num_steps=num_steps,
        warmup=warmup_steps(options, num_steps) if schedule.has_warmup else 0,
        decay=steps_of(options.lr_decay_steps, num_steps),
        num_cycles=options.lr_scheduler_num_cycles if "lr_scheduler_num_cycles" in schedule.reads else half_periods,
        power=options.lr_scheduler_power,
        timescale=options.lr_scheduler_timescale,
        min_ratio=options.lr_scheduler_min_lr_ratio or 0.0,
        end_ratio=lr_end / base_rate if lr_end < base_rate else 1.0,
        step_rules=arguments.get("step_rules"),
    )
    warmup_from = curve.min_ratio if schedule.warmup_from_min_ratio else 0.0

    def factor(step: int) -> float:
        if step < curve.warmup:
            return warmup_from + (1 - warmup_from) * step / curve.warmup
        return schedule.factor(step, curve)

    return factor


def make_lr_schedule(optimizer: torch.optim.Optimizer, options: OptimizerOptions, num_steps: int) -> LRScheduler:
    """A schedule to be stepped once per optimizer step, whatever the gradient accumulation or number of processes.

    Raises `UserError` when the class that `--lr_scheduler_type` names cannot be created.
    """
    from torch.optim.lr_scheduler import LambdaLR

    if needs_adafactor_schedule(options):
        from library.training.optimization.learning_rates import AdafactorRates

        return AdafactorRates(optimizer, options.learning_rate)
    if options.schedule_class:
        from library.training.optimization.lr_classes import make_schedule_of_class

        return make_schedule_of_class(optimizer, options.schedule_class, options.lr_scheduler_args)
    return LambdaLR(optimizer, [lr_factor(options, num_steps, group["lr"]) for group in optimizer.param_groups])


def follow_curve(schedule: LRScheduler) -> None:
    """Sets the rates of the next step to those of this run's curve, where the state loaded is of a run of other length.

    A schedule of a class of its own goes on from the rates in the state.
    """
    import torch
    from torch.optim.lr_scheduler import LambdaLR

    if type(schedule) is not LambdaLR:
        return
    factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
    rates = [base * factor for base, factor in zip(schedule.base_lrs, factors, strict=True)]
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
    schedule._last_lr = rates
