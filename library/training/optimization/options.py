"""Options of the optimizer, its learning rates and their schedule, and of the EMA."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from library.cli.errors import UserError
from library.cli.options import option
from library.training.optimization.key_value_args import read_pairs
from library.training.optimization.lr_classes import is_schedule_class
from library.training.optimization.lr_curves import SCHEDULES, read_schedule_args
from library.training.optimization.optimizer_table import ALIASES, DEFAULT, OPTIMIZERS, find_optimizer, name_problems


def _steps_or_share(value: Any) -> int | float:
    """A number of steps, or a share of all steps: 0.1 or 10%."""
    expected = ValueError("a whole number of steps, or a share of all steps such as 0.1 or 10%")
    text = str(value).strip()
    if isinstance(value, float) and value > 1 and value.is_integer():
        return int(value)
    if re.fullmatch(r"\d+", text):
        return int(text)
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)(%?)", text)
    if match is None:
        raise expected
    share = float(match[1]) / 100 if match[2] else float(match[1])
    if share > 1 or (share == 1 and not match[2]):
        raise expected
    return share


def _schedule_name(value: Any) -> str:
    """A row of the table, or a class. `adafactor:0.001` has a first rate, which AdaFactor never uses."""
    name, colon, rate = str(value).partition(":")
    is_number = re.fullmatch(r"\d*\.?\d+([eE][-+]?\d+)?", rate) is not None
    if colon and name == "adafactor" and is_number:
        return name
    if colon or not (name in SCHEDULES or is_schedule_class(name)):
        raise ValueError(f"one of {', '.join(SCHEDULES)}, a class of torch.optim.lr_scheduler, or module.Class")
    return name


@dataclass(frozen=True)
class OptimizerOptions:
    """Optimizer, learning rate and its schedule."""

    GROUP: ClassVar[str] = "Optimizer and learning rate"

    optimizer_type: str | None = option(
        help=f"{', '.join(OPTIMIZERS)}, or a class of torch.optim, in any case of letters; or module.Class"
        f" (default: {DEFAULT})",
        metavar="NAME",
    )
    optimizer_args: tuple[str, ...] = option(
        (), help="arguments of the optimizer, each as key=value: weight_decay=0.01 betas=.9,.999", metavar="KEY=VALUE",
        on_resume="kept",
    )  # fmt: skip
    use_8bit_adam: bool = option(False, help="the same as --optimizer_type AdamW8bit")
    use_lion_optimizer: bool = option(False, help="the same as --optimizer_type Lion")
    learning_rate: float = option(2e-6, help="learning rate of what has none of its own", minimum=0, on_resume="kept")
    lr_scheduler: str = option(
        "constant",
        help="learning-rate schedule; a class of torch.optim.lr_scheduler, or module.Class, too",
        choices=tuple(SCHEDULES),
        parse=_schedule_name,
    )
    lr_scheduler_type: str | None = option(
        help="class that makes the course instead: one of torch.optim.lr_scheduler, or module.Class", metavar="CLASS"
    )
    lr_scheduler_args: tuple[str, ...] = option(
        (), help="arguments of the schedule, each as key=value", aliases=("scheduler_args",), metavar="KEY=VALUE"
    )
    lr_warmup_steps: float = option(
        0,
        help="steps in which the rate rises from 0; below 1 a share of all steps",
        parse=_steps_or_share,
        metavar="STEPS",
    )
    lr_decay_steps: float = option(
        0,
        help="last steps, in which warmup_stable_decay falls; below 1 a share of all steps",
        parse=_steps_or_share,
        metavar="STEPS",
    )
    lr_scheduler_num_cycles: int = option(
        1,
        help="courses from high to low of cosine_with_restarts; half waves of cosine_with_min_lr"
        " and of the fall of warmup_stable_decay",
        minimum=1,
        off=(0,),
    )
    lr_scheduler_power: float = option(1.0, help="power of polynomial", minimum=0)
    lr_scheduler_timescale: int | None = option(
        help="steps over which inverse_sqrt falls to 1/sqrt(2); the warm-up, or 10000 without one", minimum=1
    )
    lr_scheduler_min_lr_ratio: float | None = option(
        help="lowest rate of cosine_with_min_lr and warmup_stable_decay, as a share of the highest",
        minimum=0,
        maximum=1,
    )

    @property
    def schedule_class(self) -> str | None:
        """The class that makes the schedule, by either of its two options; None for a schedule of the table."""
        return self.lr_scheduler_type or (None if self.lr_scheduler in SCHEDULES else self.lr_scheduler)

    @property
    def optimizer(self) -> str:
        """The optimizer asked for, by `--optimizer_type` or by one of the older flags."""
        old = [name for flag, name in ALIASES.items() if getattr(self, flag)]
        return self.optimizer_type or (old[0] if old else DEFAULT)

    def problems(self) -> Iterator[UserError]:
        yield from self._optimizer_problems()
        yield from self._schedule_problems()

    def _optimizer_problems(self) -> Iterator[UserError]:
        asked = {f"--{flag}": name for flag, name in ALIASES.items() if getattr(self, flag)}
        if self.optimizer_type:
            asked[f"--optimizer_type {self.optimizer_type}"] = self.optimizer_type
        if len({name.lower() for name in asked.values()}) > 1:
            yield UserError(f"{' and '.join(asked)} name different optimizers", hint="keep one of them")
        yield from name_problems(self.optimizer)
        arguments, problems = read_pairs("--optimizer_args", self.optimizer_args)
        yield from problems
        if "lr" in arguments:
            yield UserError(
                f"--optimizer_args lr={arguments['lr']} is a learning rate",
                hint="give it as --learning_rate, or as the rate of a part",
            )
        row = find_optimizer(self.optimizer)
        if self.lr_warmup_steps and row is not None and not row.starts_at_zero:
            yield UserError(
                f"--optimizer_type {self.optimizer} cannot begin with a rate of 0, but --lr_warmup_steps is"
                f" {self.lr_warmup_steps}",
                hint="give --lr_warmup_steps 0",
            )

    def _schedule_problems(self) -> Iterator[UserError]:
        if self.lr_warmup_steps and (self.schedule_class or not SCHEDULES[self.lr_scheduler].has_warmup):
            name = f"_type {self.lr_scheduler_type}" if self.lr_scheduler_type else f" {self.lr_scheduler}"
            yield UserError(
                f"--lr_scheduler{name} has no warm-up, but --lr_warmup_steps is {self.lr_warmup_steps}",
                hint="give --lr_warmup_steps 0, or --lr_scheduler constant_with_warmup or another that has one",
            )
        if self.schedule_class:
            yield from read_pairs("--lr_scheduler_args", self.lr_scheduler_args)[1]
            return
        yield from read_schedule_args(self.lr_scheduler, self.lr_scheduler_args)[1]
        row = find_optimizer(self.optimizer)
        if self.lr_scheduler == "adafactor" and row is not None and row.own_rate is None:
            yield UserError(
                f"--lr_scheduler adafactor with --optimizer_type {self.optimizer}",
                hint="give --optimizer_type AdaFactor, or another --lr_scheduler",
            )
        if self.lr_scheduler == "cosine_with_min_lr" and self.lr_scheduler_min_lr_ratio is None:
            yield UserError(
                "--lr_scheduler cosine_with_min_lr needs --lr_scheduler_min_lr_ratio",
                hint="give the lowest rate as a share of the highest, for instance 0.1",
            )


@dataclass(frozen=True)
class AverageOptions:
    """The moving average of the weights."""

    GROUP: ClassVar[str] = "Moving average of the weights (EMA)"

    ema: bool = option(False, help="keep a moving average of what is trained; samples, validation and saves use it")
    ema_decay: float = option(
        0.999, help="share of the average that each step leaves; 0.999 is a memory of 1000 steps", minimum=0
    )
    ema_start_step: int = option(0, help="step after which the average begins", minimum=0)

    def problems(self) -> Iterator[UserError]:
        if self.ema_decay >= 1:
            yield UserError(f"--ema_decay {self.ema_decay} never takes in a step", hint="give less than 1")

    def without_effect(self) -> Iterator[str]:
        """What was asked for and changes nothing beside the other options."""
        usual = AverageOptions()
        for name in ("ema_decay", "ema_start_step"):
            if getattr(self, name) != getattr(usual, name) and not self.ema:
                yield f"--{name} does nothing without --ema"
