"""Learning-rate schedules: a factor for each optimizer step. A new one is a row of `SCHEDULES`.

Imports no torch: the options take their choices from the table.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from library.cli.errors import UserError
from library.training.optimizers import needs_adafactor_schedule
from library.training.schedule_args import StepRules, read_schedule_args

if TYPE_CHECKING:
    import torch
    from torch.optim.lr_scheduler import LRScheduler

    from library.training.options import OptimizerOptions

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Course:
    """What the course of a rate depends on. Steps are optimizer steps, counted from 0."""

    num_steps: int
    warmup: int = 0
    decay: int = 0
    num_cycles: float = 1
    power: float = 1.0
    timescale: int | None = None
    min_ratio: float = 0.0
    end_ratio: float = 0.0  # the rate at the end of `polynomial` as a share of the first
    step_rules: StepRules | None = None

    def progress(self, step: int) -> float:
        """How much of the steps after the warm-up is done: 0 to 1, and above when the run is longer."""
        return (step - self.warmup) / max(1, self.num_steps - self.warmup)


def _constant(step: int, course: Course) -> float:
    return 1.0


def _linear(step: int, course: Course) -> float:
    return max(0.0, 1 - course.progress(step))


def _cosine(step: int, course: Course) -> float:
    """`num_cycles` half waves: one leads from 1 to 0. SGDR, arXiv:1608.03983, equation 5, without a restart."""
    return max(0.0, 0.5 * (1 + math.cos(math.pi * course.num_cycles * course.progress(step))))


def _cosine_with_restarts(step: int, course: Course) -> float:
    """`num_cycles` times from 1 to 0, with a jump back to 1 between. SGDR, arXiv:1608.03983, equation 5."""
    progress = course.progress(step)
    return 0.0 if progress >= 1 else 0.5 * (1 + math.cos(math.pi * (course.num_cycles * progress % 1)))


def _polynomial(step: int, course: Course) -> float:
    left = max(0.0, 1 - course.progress(step))
    return (1 - course.end_ratio) * left**course.power + course.end_ratio


def _inverse_sqrt(step: int, course: Course) -> float:
    """1 / sqrt(1 + steps after the warm-up / timescale); the timescale is the warm-up, or 10,000 without one."""
    timescale = course.timescale or course.warmup or 10_000
    return 1 / math.sqrt(1 + (step - course.warmup) / timescale)


def _cosine_with_min_lr(step: int, course: Course) -> float:
    return course.min_ratio + (1 - course.min_ratio) * _cosine(step, course)


def _warmup_stable_decay(step: int, course: Course) -> float:
    """1 up to the last `decay` steps, then half waves of a cosine down to `min_ratio`. arXiv:2404.06395, section 4."""
    start = course.num_steps - course.decay
    if step < start:
        return 1.0
    if step >= course.num_steps:
        return course.min_ratio
    wave = 0.5 * (1 + math.cos(math.pi * course.num_cycles * (step - start) / course.decay))
    return course.min_ratio + (1 - course.min_ratio) * wave


def _piecewise_constant(step: int, course: Course) -> float:
    assert course.step_rules is not None, "the options were checked"
    return next((factor for bound, factor in course.step_rules.bounds if step < bound), course.step_rules.last)


@dataclass(frozen=True)
class Schedule:
    """A row of the table."""

    factor: Callable[[int, Course], float]  # of a step after the warm-up
    has_warmup: bool = True
    warmup_from_min_ratio: bool = False  # the warm-up rises from `min_ratio`, not from 0
    reads: tuple[str, ...] = ()  # the options that it depends on, beside the warm-up


SCHEDULES: dict[str, Schedule] = {
    "constant": Schedule(_constant, has_warmup=False),
    "constant_with_warmup": Schedule(_constant),
    "linear": Schedule(_linear),
    "cosine": Schedule(_cosine),
    "cosine_with_restarts": Schedule(_cosine_with_restarts, reads=("lr_scheduler_num_cycles",)),
    "polynomial": Schedule(_polynomial, reads=("lr_scheduler_power",)),
    "inverse_sqrt": Schedule(_inverse_sqrt, reads=("lr_scheduler_timescale",)),
    "cosine_with_min_lr": Schedule(_cosine_with_min_lr, reads=("lr_scheduler_num_cycles", "lr_scheduler_min_lr_ratio")),
    "warmup_stable_decay": Schedule(
        _warmup_stable_decay,
        warmup_from_min_ratio=True,
        reads=("lr_decay_steps", "lr_scheduler_num_cycles", "lr_scheduler_min_lr_ratio"),
    ),
    "piecewise_constant": Schedule(_piecewise_constant, has_warmup=False),
    "adafactor": Schedule(_constant, has_warmup=False),  # AdaFactor's relative_step makes the rate
}

# options that only some schedules read, and their defaults
_SHAPING = {
    "lr_decay_steps": 0,
    "lr_scheduler_num_cycles": 1,
    "lr_scheduler_power": 1.0,
    "lr_scheduler_timescale": None,
    "lr_scheduler_min_lr_ratio": None,
}

_DEFAULT_LR_END = 1e-7  # of `polynomial`


def steps_of(share: int | float, num_steps: int) -> int:
    """A whole number stands for itself, a fraction (a value below 1, or one given in percent) for a share of steps."""
    return int(share * num_steps) if isinstance(share, float) else share


def warmup_steps(options: OptimizerOptions, num_steps: int) -> int:
    """The number of warm-up steps."""
    return steps_of(options.lr_warmup_steps, num_steps)


def schedule_name(options: OptimizerOptions) -> str:
    """The schedule that is used: an optimizer that makes its own rate has no other than `adafactor`."""
    return "adafactor" if needs_adafactor_schedule(options) else options.lr_scheduler_type or options.lr_scheduler


def check_lr_schedule(options: OptimizerOptions, num_steps: int) -> None:
    """Warns of options that the schedule does not read. Raises `UserError` where it does not fit into the run."""
    name = schedule_name(options)
    reads = SCHEDULES[name].reads if name in SCHEDULES else ()
    for option, default in _SHAPING.items():
        if getattr(options, option) != default and option not in reads:
            logger.warning("--%s is without effect: the schedule %s does not read it", option, name)
    if name == "adafactor" and not needs_adafactor_schedule(options):
        raise UserError(
            "--lr_scheduler adafactor is the course of relative_step=True, which the optimizer has not",
            hint="give another --lr_scheduler, constant for instance",
        )
    if name != options.lr_scheduler and name == "adafactor":
        logger.info("the optimizer makes its own rates: --lr_scheduler adafactor is used")
    if options.lr_scheduler_type:
        from library.training.schedule_classes import check_schedule_class

        check_schedule_class(options.lr_scheduler_type, options.lr_scheduler_args)
    warmup, decay = warmup_steps(options, num_steps), steps_of(options.lr_decay_steps, num_steps)
    if "lr_decay_steps" in reads and warmup + decay > num_steps:
        raise UserError(
            f"--lr_warmup_steps {warmup} and --lr_decay_steps {decay} are more than the {num_steps} steps of the run",
            hint="lower one of them, or give shares of all steps, such as 0.1",
        )


def lr_factor(options: OptimizerOptions, num_steps: int, base_rate: float = 1.0) -> Callable[[int], float]:
    """The factor of the learning rate `base_rate` as a function of the optimizer step, counted from 0."""
    arguments, problems = read_schedule_args(options.lr_scheduler, options.lr_scheduler_args)
    assert not problems, "the options were checked"
    schedule = SCHEDULES[options.lr_scheduler]
    lr_end = arguments.get("lr_end", _DEFAULT_LR_END)
    # 0.5 is the half wave of one course from 1 to 0: arguments count whole waves, the option half ones
    waves = 2 * arguments.get("num_cycles", 0.5)
    course = Course(
        num_steps=num_steps,
        warmup=warmup_steps(options, num_steps) if schedule.has_warmup else 0,
        decay=steps_of(options.lr_decay_steps, num_steps),
        num_cycles=options.lr_scheduler_num_cycles if "lr_scheduler_num_cycles" in schedule.reads else waves,
        power=options.lr_scheduler_power,
        timescale=options.lr_scheduler_timescale,
        min_ratio=options.lr_scheduler_min_lr_ratio or 0.0,
        end_ratio=lr_end / base_rate if lr_end < base_rate else 1.0,
        step_rules=arguments.get("step_rules"),
    )
    warmup_from = course.min_ratio if schedule.warmup_from_min_ratio else 0.0

    def factor(step: int) -> float:
        if step < course.warmup:
            return warmup_from + (1 - warmup_from) * step / course.warmup
        return schedule.factor(step, course)

    return factor


def make_lr_schedule(optimizer: torch.optim.Optimizer, options: OptimizerOptions, num_steps: int) -> LRScheduler:
    """A schedule that is stepped once per optimizer step, whatever the accumulation or number of processes.

    Raises `UserError` when the class that `--lr_scheduler_type` names cannot be made.
    """
    from torch.optim.lr_scheduler import LambdaLR

    if needs_adafactor_schedule(options):
        from library.training.adafactor_rates import AdafactorRates

        return AdafactorRates(optimizer, options.learning_rate)
    if options.lr_scheduler_type:
        from library.training.schedule_classes import make_schedule_of_class

        return make_schedule_of_class(optimizer, options.lr_scheduler_type, options.lr_scheduler_args)
    return LambdaLR(optimizer, [lr_factor(options, num_steps, group["lr"]) for group in optimizer.param_groups])
