"""The validation loss: the training objective on held-out images, which rises when the model overfits.

Images, crops, captions, noise and timesteps are the same each time, in every run on the same data, so that two values
of the curve differ only by the weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

import torch
from accelerate import Accelerator
from torch import nn

from library.data.batches.loader import BatchLoader
from library.data.batches.plan import TrainingData
from library.data.records import Batch
from library.training.evaluation.modes import evaluation_mode
from library.training.inputs.objective import Objective

logger = logging.getLogger(__name__)

NUM_TIMESTEPS = 5
VALIDATION_SEED = 0  # for batch order and random captions, whatever the run's seed is


def timestep_grid(timesteps: range, count: int = NUM_TIMESTEPS) -> list[int]:
    """The middles of `count` equal parts of the timesteps: 100, 300, 500, 700, 900 of 1000. Without repeats."""
    middles = (timesteps[int((part + 0.5) * len(timesteps) / count)] for part in range(count))
    return list(dict.fromkeys(middles))


class Validator:
    """Computes the validation loss on held-out images."""

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
        """data: the held-out images, which `loader` loads. modules: to put into eval mode."""
        self._objective = objective
        self._loader = loader
        self._micro_batches = data.batches_of_epoch(VALIDATION_SEED, 0)[:max_batches]
        self._accelerator = accelerator
        self._modules = modules
        self._timesteps = timestep_grid(objective.timesteps)

    def losses(self, run: Callable[[Callable[[], torch.Tensor]], torch.Tensor]) -> dict[str, float]:
        """`loss/validation`, the mean over images and timesteps, and `loss/validation_t<timestep>` of each timestep.

        The batches are split evenly over the processes; some compute the last one again without counting it. Does not
        touch the run's random generators. `run` runs whatever computes with the weights (see `ParallelStrategy.run`).
        """
        rank, num_processes = self._accelerator.process_index, self._accelerator.num_processes
        sums = torch.zeros(len(self._timesteps) + 1, device=self._accelerator.device)
        padding = -len(self._micro_batches) % num_processes
        share = [*self._micro_batches, *self._micro_batches[-1:] * padding][rank::num_processes]
        num_mine = len(self._micro_batches[rank::num_processes])
        with evaluation_mode(self._modules):
            for index, batch in enumerate(self._loader.batches(share)):
                with torch.no_grad():
                    losses = run(partial(self._losses_of, batch))
                if index < num_mine:
                    sums += losses
        if self._accelerator.num_processes > 1:
            sums = self._accelerator.reduce(sums, reduction="sum")
        *totals, num_images = sums.tolist()
        means = [total / num_images for total in totals]
        named = {f"loss/validation_t{step:03d}": mean for step, mean in zip(self._timesteps, means, strict=True)}
        return {"loss/validation": sum(means) / len(means), **named}

    def _losses_of(self, batch: Batch) -> torch.Tensor:
        """The sums over a batch's images at each timestep, and their number."""
        losses = self._objective.losses_at(batch, self._timesteps)
        return len(batch.captions) * torch.stack([*losses, torch.ones_like(losses[0])]).float()
