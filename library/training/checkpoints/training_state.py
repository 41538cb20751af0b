"""The training state besides the weights: optimizer, learning-rate schedule, gradient scaler, EMA; save and load."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from library.cli.errors import UserError
from library.training.distributed.strategy import ParallelStrategy
from library.training.optimization.ema import WeightEMA
from library.training.optimization.lr_schedules import follow_curve

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StatefulParts:
    """The objects of a run that have state, besides the trained weights and the losses."""

    strategy: ParallelStrategy
    lr_schedule: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler | None
    average: WeightEMA | None

    def state(self) -> dict[str, Any]:
        """For the first process to save; all processes call it together, since sharded state is gathered."""
        return {
            "optimizer": self.strategy.optimizer_state(),
            "lr_schedule": self.lr_schedule.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "average": None if self.average is None else self._average_state(self.average),
        }

    def _average_state(self, average: WeightEMA) -> dict[str, Any]:
        state = average.state()
        return {**state, "averages": self.strategy.gather(state["averages"])}

    def load(self, state: Mapping[str, Any], folder: str) -> None:
        """Restores a `state` read from `folder`. Raises `UserError` when it belongs to other parameters."""
        try:
            self.strategy.load_optimizer_state(state["optimizer"])
        except (ValueError, KeyError) as error:
            raise UserError(
                f"--resume {folder}: the optimizer state belongs to other parameters: {error}",
                hint="use the options of the run that saved it, learning rates of 0 too",
            ) from None
        self.lr_schedule.load_state_dict(state["lr_schedule"])
        follow_curve(self.lr_schedule)
        if self.scaler is not None and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])
        self._load_average(state.get("average"))

    def _load_average(self, state: Mapping[str, Any] | None) -> None:
        if self.average is not None and state is not None:
            self.average.load({**state, "averages": self.strategy.shard(state["averages"])})
        elif self.average is not None:
            logger.warning("--ema: the state has no moving average (EMA); a new one starts here")
        elif state is not None:
            logger.warning("the moving average (EMA) in the state is dropped: --ema is not given")
