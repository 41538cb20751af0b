"""Optimizers by name. A new one is a row of `OPTIMIZERS`.

Imports no torch: the options take their names from the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from library.cli.errors import UserError

if TYPE_CHECKING:
    import torch

    from library.training.method import ParamGroup
    from library.training.options import OptimizerOptions

Groups = list[dict[str, Any]]


def _adamw(groups: Groups) -> torch.optim.Optimizer:
    import torch

    return torch.optim.AdamW(groups)


def _adamw8bit(groups: Groups) -> torch.optim.Optimizer:
    try:
        import bitsandbytes
    except ImportError as error:
        raise UserError(
            f"--optimizer_type AdamW8bit needs bitsandbytes: {error}", hint="pip install bitsandbytes"
        ) from None
    return bitsandbytes.optim.AdamW8bit(groups)


OPTIMIZERS: dict[str, Callable[[Groups], torch.optim.Optimizer]] = {
    "AdamW": _adamw,
    "AdamW8bit": _adamw8bit,
}


def find_optimizer(name: str) -> Callable[[Groups], torch.optim.Optimizer] | None:
    """What makes the optimizer of that name, in any case of letters; None when there is none."""
    return {known.lower(): make for known, make in OPTIMIZERS.items()}.get(name.lower())


def make_optimizer(options: OptimizerOptions, groups: Sequence[ParamGroup]) -> torch.optim.Optimizer:
    """The optimizer that `--optimizer_type` names, each group at its own learning rate."""
    make = find_optimizer(options.optimizer_type)
    assert make is not None, "the options were checked"
    return make([{"params": group.params, "lr": group.learning_rate} for group in groups])
