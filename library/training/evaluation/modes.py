"""The model as its user will have it: nothing dropped out, weights as they are saved."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from library.training.optimization.ema import WeightEMA
from library.training.optimization.optimizer_state import schedulefree_eval


@contextlib.contextmanager
def evaluation_mode(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within it nothing is dropped out of the modules; afterwards each is in the mode that it was in."""
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
    """Within it the parameters are those to sample from, to validate and to save; afterwards what they were."""
    weights = schedulefree_eval(optimizer) if average is None else average.swapped_in()
    with weights:
        yield
