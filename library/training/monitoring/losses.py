"""Losses of a run, kept on the device until they are logged, so that no step waits for one."""

from __future__ import annotations

from collections import deque

import torch


class LossHistory:
    """The losses of past steps, and their moving average over as many steps as an epoch has."""

    def __init__(self, steps_per_epoch: int, past: torch.Tensor | None = None):
        """`past`: the `state` of the run that is resumed."""
        total, *window = [0.0] if past is None else past.tolist()
        self._total: float = total
        self._window: deque[float] = deque(window)
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
            self._window.append(value)
            self._total += value
            while len(self._window) > self._steps_per_epoch:
                self._total -= self._window.popleft()
            rows.append((step, value, self._total / len(self._window)))
        self._waiting.clear()
        return rows

    def state(self) -> torch.Tensor:
        """The running total, and the losses that it sums, in float64; call `fetch` before."""
        return torch.tensor([self._total, *self._window], dtype=torch.float64)
