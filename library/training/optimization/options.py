"""Options of the optimizer, the learning rates, the learning-rate schedule, and the EMA."""

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
    """A number of steps, or a fraction of all steps: 0.1 or 10%."""
    expected = ValueError("a whole number of steps, or a fraction of all steps such as 0.1 or 10%")
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
    """A named schedule, or a class. The initial rate in `adafactor:0.001` is dropped: AdaFactor never uses it."""
    name, colon, rate = str(value).partition(":")
    is_number = re.fullmatch(r"\d*\.?\d+([eE][-+]?\d+)?", rate) is not None
    if colon and name == "adafactor" and is_number:
        return name
    if colon or not (name in SCHEDULES or is_schedule_class(name)):
        raise ValueError(f"one of {', '.join(SCHEDULES)}, a class of torch.optim.lr_scheduler, or module.Class")
    return name


@dataclass(frozen=True)
class OptimizerOptions:
    """Optimizer, learning rate and learning-rate schedule."""

    GROUP: ClassVar[str] = "Optimizer and learning rate"

    optimizer_type: str | None = option(
        help=f"{', '.join(OPTIMIZERS)}, or a class of torch.optim (upper or lower case); or module.Class"
        f" (default: {DEFAULT})",
        metavar="NAME",
    )
    optimizer_args: tuple[str, ...] = option(
        (), help="arguments of the optimizer, each as key=value: weight_decay=0.01 betas=.9,.999", metavar="KEY=VALUE",
        on_resume="kept",
    )  # fmt: skip
    use_8bit_adam: bool = option(False, help="the same as --optimizer_type AdamW8bit")
    use_lion_optimizer: bool = option(False, help="the same as --optimizer_type Lion")
    learning_rate: float = option(
        2e-6, help="default learning rate, for every part without its own", minimum=0, on_resume="kept"
    )
    lr_scheduler: str = option(
        "constant",
        help="learning-rate schedule; also a class of torch.optim.lr_scheduler, or module.Class",
        choices=tuple(SCHEDULES),
        parse=_schedule_name,
    )
    lr_scheduler_type: str | None = option(
        help="schedule class to use instead: one of torch.optim.lr_scheduler, or module.Class", metavar="CLASS"
    )
    lr_scheduler_args: tuple[str, ...] = option(
        (), help="arguments of the schedule, each as key=value", aliases=("scheduler_args",), metavar="KEY=VALUE"
    )
    lr_warmup_steps: float = option(
        0,
        help="warm-up: steps in which the learning rate rises from 0; below 1, a fraction of all steps",
        parse=_steps_or_share,
        metavar="STEPS",
    )
    lr_decay_steps: float = option(
        0,
        help="final steps in which warmup_stable_decay decays; below 1, a fraction of all steps",
        parse=_steps_or_share,
        metavar="STEPS",
    )
    lr_scheduler_num_cycles: int = option(
        1,
        help="number of cycles of cosine_with_restarts, or of half periods of cosine_with_min_lr and of the decay of"
        " warmup_stable_decay",
        minimum=1,
        off=(0,),
    )
    lr_scheduler_power: float = option(1.0, help="power of the polynomial schedule", minimum=0)
    lr_scheduler_timescale: int | None = option(
        help="steps in which inverse_sqrt decays to 1/sqrt(2) (default: the warm-up steps, or 10000 without a warm-up)",
        minimum=1,
    )
    lr_scheduler_min_lr_ratio: float | None = option(
        help="minimum learning rate of cosine_with_min_lr and warmup_stable_decay, as a fraction of the peak",
        minimum=0,
        maximum=1,
    )

    @property
    def schedule_class(self) -> str | None:
        """The schedule class, from either of its two options; None for a named schedule."""
        return self.lr_scheduler_type or (None if self.lr_scheduler in SCHEDULES else self.lr_scheduler)

    @property
    def optimizer(self) -> str:
        """The optimizer's name, from `--optimizer_type` or one of the older flags."""
        old = [name for flag, name in ALIASES.items() if getattr(self, flag)]
        return self.optimizer_type or (old[0] if old else DEFAULT)

    def check(self) -> Iterator[UserError]:
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
                hint="use --learning_rate, or the learning rate option of the part",
            )
        row = find_optimizer(self.optimizer)
        if self.lr_warmup_steps and row is not None and not row.starts_at_zero:
            yield UserError(
                f"--optimizer_type {self.optimizer} cannot start at learning rate 0, but --lr_warmup_steps is"
                f" {self.lr_warmup_steps}",
                hint="give --lr_warmup_steps 0",
            )

    def _schedule_problems(self) -> Iterator[UserError]:
        if self.lr_warmup_steps and (self.schedule_class or not SCHEDULES[self.lr_scheduler].has_warmup):
            name = f"_type {self.lr_scheduler_type}" if self.lr_scheduler_type else f" {self.lr_scheduler}"
            yield UserError(
                f"--lr_scheduler{name} has no warm-up, but --lr_warmup_steps is {self.lr_warmup_steps}",
                hint="use --lr_warmup_steps 0, or a schedule with a warm-up such as constant_with_warmup",
            )
        if self.schedule_class:
            yield from read_pairs("--lr_scheduler_args", self.lr_scheduler_args)[1]
            return
        yield from read_schedule_args(self.lr_scheduler, self.lr_scheduler_args)[1]
        row = find_optimizer(self.optimizer)
        if self.lr_scheduler == "adafactor" and row is not None and row.own_rate is None:
            yield UserError(
                f"--lr_scheduler adafactor with --optimizer_type {self.optimizer}",
                hint="use --optimizer_type AdaFactor, or another --lr_scheduler",
            )
        if self.lr_scheduler == "cosine_with_min_lr" and self.lr_scheduler_min_lr_ratio is None:
            yield UserError(
                "--lr_scheduler cosine_with_min_lr needs --lr_scheduler_min_lr_ratio",
                hint="give the minimum learning rate as a fraction of the peak, for instance 0.1",
            )


@dataclass(frozen=True)
class AverageOptions:
    """The exponential moving average (EMA) of the trained weights."""

    GROUP: ClassVar[str] = "Moving average of the weights (EMA)"

    ema: bool = option(
        False, help="keep an EMA of the trained weights; sample images, validation and saved files use it"
    )
    ema_decay: float = option(0.999, help="decay of the EMA; 0.999 averages over about 1000 steps", minimum=0)
    ema_start_step: int = option(0, help="start the EMA after this step", minimum=0)

    def check(self) -> Iterator[UserError | str]:
        if self.ema_decay >= 1:
            yield UserError(
                f"--ema_decay {self.ema_decay} must be below 1: the average would never change", hint="0.999 is usual"
            )
        yield from self._without_effect()

    def _without_effect(self) -> Iterator[str]:
        """Options that have no effect together with the others."""
        usual = AverageOptions()
        for name in ("ema_decay", "ema_start_step"):
            if getattr(self, name) != getattr(usual, name) and not self.ema:
                yield f"--{name} does nothing without --ema"
