"""Schedule-free train and eval modes of an optimizer, and loading its state exactly."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch


def start_training(optimizer: torch.optim.Optimizer) -> None:
    """Call before the first step: a schedule-free optimizer has to be put in train mode."""
    if hasattr(optimizer, "train"):
        optimizer.train()


@contextlib.contextmanager
def schedulefree_eval(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside the context the parameters are those to sample from, validate and save.

    A schedule-free optimizer ("The Road Less Scheduled", Defazio et al., 2405.15682) takes gradients at points y, while
    its result is an average x of the steps; for other optimizers nothing is done. Afterwards every parameter is
    restored bit for bit: going back from x to y by the optimizer's own formula would round.
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
    """Loads a `state_dict`, every tensor in the dtype it was saved in.

    PyTorch casts optimizer states to the dtype of their parameter, which rounds states that an optimizer keeps in a
    higher precision than a half-precision parameter. Raises `ValueError` for the state of other parameters.
    """
    kernels = [group.get("fused") for group in optimizer.param_groups]
    is_paged = getattr(optimizer, "is_paged", False)
    if is_paged:  # it need not fit on the GPU
        optimizer.load_state_dict(dict(state), move_to_device=False)  # type: ignore[call-arg]
    else:
        optimizer.load_state_dict(dict(state))
    for group, fused in zip(optimizer.param_groups, kernels, strict=True):
        if "fused" in group:  # as suits the device and the sharding of this run, not of the saved one
            group["fused"] = fused
    params = [param for group in optimizer.param_groups for param in group["params"]]
    indices = [index for group in state["param_groups"] for index in group["params"]]
    for index, param in zip(indices, params, strict=True):
        for key, saved in state["state"].get(index, {}).items():
            loaded = optimizer.state[param].get(key)
            if isinstance(saved, torch.Tensor) and isinstance(loaded, torch.Tensor) and loaded.dtype != saved.dtype:
                optimizer.state[param][key] = saved.to(loaded.device, copy=True)
    if is_paged:
        _page_again(optimizer)


def _page_again(optimizer: Any) -> None:
    """Moves the loaded states of a paged optimizer of bitsandbytes to paged memory, and the others to the GPU."""
    for param, state in optimizer.state.items():
        for key in ("state1", "state2"):
            if isinstance(state.get(key), torch.Tensor):
                buffer = optimizer.get_state_buffer(param, dtype=state[key].dtype)  # paged where it is large
                state[key] = buffer.copy_(state[key])
    optimizer.to_gpu()
