"""What a state holds beside the weights: taken from the parts of a run, and given back to them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from library.cli.errors import UserError
from library.training.distributed.strategy import ParallelStrategy
from library.training.optimization.ema import WeightEMA

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StatefulParts:
    """The parts of a run that change as it goes, beside what learns and the losses."""

    strategy: ParallelStrategy
    lr_schedule: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler | None
    average: WeightEMA | None

    def state(self) -> dict[str, Any]:
        """For the first process; all call it together, as what lies in parts is gathered."""
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
        """Takes up a `state`. Raises `UserError` for that of other parts of the model; `folder`: where it is from."""
        try:
            self.strategy.load_optimizer_state(state["optimizer"])
        except (ValueError, KeyError) as error:
            raise UserError(
                f"--resume {folder}: the optimizer's state is of other parts of the model: {error}",
                hint="give the options of the run that saved it, learning rates of 0 among them",
            ) from None
        self.lr_schedule.load_state_dict(state["lr_schedule"])
        if self.scaler is not None and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])
        self._load_average(state.get("average"))

    def _load_average(self, state: Mapping[str, Any] | None) -> None:
        if self.average is not None and state is not None:
            self.average.load({**state, "averages": self.strategy.shard(state["averages"])})
        elif self.average is not None:
            logger.warning("--ema: the state has no moving average; one begins here")
        elif state is not None:
            logger.warning("the moving average of the state is left behind: --ema is not given")
