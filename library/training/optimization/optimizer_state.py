"""What is inside an optimizer: the weights it shows and those it trains, and its exact state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch


def start_training(optimizer: torch.optim.Optimizer) -> None:
    """To be called before the first step: a schedule-free optimizer does not step otherwise."""
    if hasattr(optimizer, "train"):
        optimizer.train()


@contextlib.contextmanager
def schedulefree_eval(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Within it the parameters are those to sample from and to save.

    A schedule-free optimizer ("The Road Less Scheduled", Defazio et al., 2405.15682) takes gradients at points y, while
    its result is an average x of the steps; for others nothing is done. Afterwards every parameter is what it was,
    bit for bit: going back from x to y by the optimizer's own formula would round.
    """
    if not hasattr(optimizer, "eval") or not hasattr(optimizer, "train"):
        yield
        return
    params = [param for group in optimizer.param_groups for param in group["params"]]
    trained = [param.detach().clone() for param in params]
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()
        with torch.no_grad():
            for param, value in zip(params, trained, strict=True):
                param.copy_(value)


def load_exactly(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Loads a `state_dict`, every tensor in the data type it was saved in.

    PyTorch turns what belongs to a parameter into the parameter's type, and so rounds what an optimizer keeps more
    exactly than a half-precision parameter. Raises `ValueError` for the state of other parameters.
    """
    optimizer.load_state_dict(dict(state))
    params = [param for group in optimizer.param_groups for param in group["params"]]
    indices = [index for group in state["param_groups"] for index in group["params"]]
    for index, param in zip(indices, params, strict=True):
        for key, saved in state["state"].get(index, {}).items():
            loaded = optimizer.state[param].get(key)
            if isinstance(saved, torch.Tensor) and isinstance(loaded, torch.Tensor) and loaded.dtype != saved.dtype:
                optimizer.state[param][key] = saved.to(loaded.device, copy=True)
