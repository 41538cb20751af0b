"""Steps whose loss or gradients are not finite: they are named, not applied, and too many in a row end the run."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from library.cli.errors import UserError, listed, plural
from library.cli.launcher import command_line
from library.training.inputs.run_data import LoadedBatch

logger = logging.getLogger(__name__)

_MAX_NAMES = 8


class NonfiniteSteps:
    """Counts the steps in a row that could not be applied."""

    def __init__(self, accelerator: Accelerator, most: int):
        """most: `--max_nonfinite_steps`."""
        self._accelerator = accelerator
        self._most = most
        self._in_a_row = 0
        self._last = ""
        self._sources = "images"  # what a step is made of
        self.named: list[tuple[int, str]] = []  # all of them, each with its step

    @property
    def are_too_many(self) -> bool:
        return self._in_a_row >= self._most

    def end_row(self) -> None:
        """Call for a step that was applied."""
        self._in_a_row = 0

    def add(
        self, step: int, batches: Sequence[LoadedBatch], losses: Sequence[torch.Tensor], num_zeroed: int = 0
    ) -> None:
        """Names a step that is not applied, with its images: those of the batches whose loss is not finite, or all.

        All processes call it for the same step; batches and losses are this process's. `num_zeroed`: where the
        backward pass is the step, the non-finite gradients that it took as zeros.
        """
        self._in_a_row += 1
        bad = [batch for batch, loss in zip(batches, losses, strict=True) if not torch.isfinite(loss)]
        named = gather_object([(bool(bad), name) for batch in bad or batches for name in batch.sources])
        has_bad_loss = any(is_bad for is_bad, _ in named)
        names = dict.fromkeys(name for is_bad, name in named if is_bad == has_bad_loss)
        self._sources = batches[0].SOURCES if batches else self._sources
        what = "the loss is not finite" if has_bad_loss else "the gradients are not finite" + self._scale()
        self._last = f"step {step}: {what}, with the {self._sources} {listed(list(names), _MAX_NAMES)}"
        what = f"is applied with {plural(num_zeroed, 'gradient')} as zeros" if num_zeroed else "is not applied"
        text = f"{self._last}; the step {what} ({self._in_a_row} in a row)"
        self.named.append((step, text))
        logger.warning("%s", text)

    def _scale(self) -> str:
        """What fp16's scale of the loss, which is lowered until gradients fit, was."""
        scaler = self._accelerator.scaler
        return "" if scaler is None else f" in fp16, with the loss scaled by {scaler.get_scale():g}"

    def error(self, state: str | None, are_weights_finite: bool) -> UserError:
        """What ends the run. `state`: the folder that was saved, if one could be."""
        message = f"{plural(self._in_a_row, 'step')} in a row could not be applied; the last was {self._last}"
        if not are_weights_finite:
            return UserError(
                f"{message}. The weights themselves are not finite any more",
                hint="start again, or from an earlier state, with a lower --learning_rate"
                " (--max_grad_norm 1 limits what one bad step does)",
            )
        remedy = (
            f"look at these {self._sources}, lower --learning_rate, give --mixed_precision bf16 or no instead of fp16"
        )
        if state is None:
            return UserError(message, hint=remedy)
        return UserError(
            f"{message}. The state is saved in {state}",
            hint=f"{remedy}; then go on with {command_line(['--resume', state])}",
        )
