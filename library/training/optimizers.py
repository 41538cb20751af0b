"""Optimizers by name. A new one is a row of `OPTIMIZERS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from library.cli.errors import UserError
from library.training.method import ParamGroup
from library.training.options import OptimizerOptions


def _adamw8bit(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    try:
        import bitsandbytes
    except ImportError as error:
        raise UserError(
            f"--optimizer_type AdamW8bit needs bitsandbytes: {error}", hint="pip install bitsandbytes"
        ) from None
    return bitsandbytes.optim.AdamW8bit(groups)


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]]], torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adamw8bit": _adamw8bit,
}


def make_optimizer(options: OptimizerOptions, groups: Sequence[ParamGroup]) -> torch.optim.Optimizer:
    """The optimizer that `--optimizer_type` names, each group at its own learning rate."""
    return OPTIMIZERS[options.optimizer_type.lower()](
        [{"params": group.params, "lr": group.learning_rate} for group in groups]
    )
