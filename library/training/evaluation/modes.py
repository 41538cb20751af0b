"""Context managers for evaluation: modules in eval mode (no dropout), and the weights that would be saved (EMA)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from library.training.optimization.ema import WeightEMA
from library.training.optimization.optimizer_state import schedulefree_eval


@contextlib.contextmanager
def evaluation_mode(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Inside the context the modules are in eval mode (no dropout); afterwards each is in its earlier mode."""
    was_training = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, training in zip(modules, was_training, strict=True):
            module.train(training)


@contextlib.contextmanager
def ema_scope(optimizer: torch.optim.Optimizer, average: WeightEMA | None) -> Iterator[None]:
    """Inside the context the parameters are those to sample from, validate and save: EMA or schedule-free averages."""
    weights = schedulefree_eval(optimizer) if average is None else average.swapped_in()
    with weights:
        yield
