"""The validation loss: what training makes small, on pictures that it never sees.

Pictures, crops, captions, noise and timesteps are the same each time, in every run on the same data, so that only the
weights make a difference between two values of the curve.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import nn

from library.data.dataset import BatchLoader
from library.data.plan import TrainingData
from library.training.evaluation import evaluation_mode
from library.training.objective import Objective

logger = logging.getLogger(__name__)

NUM_TIMESTEPS = 5
VALIDATION_SEED = 0  # of the order of the batches and of what captions draw, whatever the run's seed is


def timestep_grid(timesteps: range, count: int = NUM_TIMESTEPS) -> list[int]:
    """The middles of `count` equal parts of the timesteps: 100, 300, 500, 700, 900 of 1000. Without repeats."""
    middles = (timesteps[int((part + 0.5) * len(timesteps) / count)] for part in range(count))
    return list(dict.fromkeys(middles))


class Validator:
    """Measures the loss on held-out pictures."""

    def __init__(
        self,
        objective: Objective,
        loader: BatchLoader,
        data: TrainingData,
        accelerator: Accelerator,
        *,
        modules: Sequence[nn.Module],
        max_batches: int | None,
    ):
        """data: of the held-out pictures, which `loader` loads. modules: what has an evaluation mode."""
        self._objective = objective
        self._loader = loader
        self._micro_batches = data.plan(VALIDATION_SEED, 0)[:max_batches]
        self._accelerator = accelerator
        self._modules = modules
        self._timesteps = timestep_grid(objective.timesteps)

    def losses(self) -> dict[str, float]:
        """`loss/validation`, the mean over pictures and timesteps, and `loss/validation_t<timestep>` of each timestep.

        The processes share the batches. Draws nothing from the run's generators.
        """
        device, mine = self._accelerator.device, self._accelerator.process_index
        sums = torch.zeros(len(self._timesteps) + 1, device=device)
        share = self._micro_batches[mine :: self._accelerator.num_processes]
        with evaluation_mode(self._modules):
            for batch in self._loader.batches(share):
                losses = [self._objective.loss_at(batch, timestep) for timestep in self._timesteps]
                sums += len(batch.captions) * torch.stack([*losses, torch.ones((), device=device)]).float()
        if self._accelerator.num_processes > 1:
            sums = self._accelerator.reduce(sums, reduction="sum")
        *totals, num_pictures = sums.tolist()
        means = [total / num_pictures for total in totals]
        named = {f"loss/validation_t{step:03d}": mean for step, mean in zip(self._timesteps, means, strict=True)}
        return {"loss/validation": sum(means) / len(means), **named}
