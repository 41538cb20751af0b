"""Losses of a run: kept on the device until they are wanted, so that no step waits for one."""

from __future__ import annotations

import torch


class LossHistory:
    """The losses of the steps done, and their average over the last epoch's worth of steps."""

    def __init__(self, steps_per_epoch: int, past: torch.Tensor | None = None):
        self._window: list[float] = [] if past is None else past.tolist()
        self._steps_per_epoch = steps_per_epoch
        self._waiting: list[tuple[int, torch.Tensor]] = []

    def add(self, step: int, loss: torch.Tensor) -> None:
        self._waiting.append((step, loss.detach()))

    def fetch(self) -> list[tuple[int, float, float]]:
        """(step, loss, average) of every step since the last call; waits for the device once."""
        if not self._waiting:
            return []
        values = torch.stack([loss for _, loss in self._waiting]).tolist()
        rows = []
        for (step, _), value in zip(self._waiting, values, strict=True):
            self._window = [*self._window, value][-self._steps_per_epoch :]
            rows.append((step, value, sum(self._window) / len(self._window)))
        self._waiting.clear()
        return rows

    def state(self) -> torch.Tensor:
        """What a resumed run needs to go on with the average; call `fetch` before."""
        return torch.tensor(self._window, dtype=torch.float64)
