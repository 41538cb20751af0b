"""The second seam: which parameters learn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from library.models.family import ModelFamily
from library.training.step_plan import Position


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that share a learning rate, under the name that the rate has in logs."""

    name: str
    params: list[nn.Parameter]
    learning_rate: float


class TrainingMethod(Protocol):
    """What is trained on a model family: an adapter network (LoRA), the whole model, an embedding.

    The trainer calls `attach` once, then the hooks; it never asks which method it has.
    """

    trains_text_encoders: bool  # gradients flow through them
    trained_parts: frozenset[str]  # "unet", "text_encoder": trained itself; a method with any saves the model
    architecture_suffix: str  # behind the model's architecture in `modelspec.architecture`: "/lora", or nothing
    ending: str  # of the files that `save` writes; empty for folders

    def attach(self, family: ModelFamily, *, seed: int, default_learning_rate: float, checkpointing: bool) -> None:
        """Creates or selects the trained parameters, in float32, on the CPU. New weights depend on `seed` alone."""

    def param_groups(self) -> list[ParamGroup]: ...

    def trainable_modules(self) -> list[nn.Module]:
        """Modules to move to the device and to set to training mode."""

    def on_epoch_start(self, epoch: int) -> None: ...

    def on_step_start(self, step: int) -> None:
        """`step`: how many steps are done, those before a resume included."""

    def after_update(self) -> None:
        """After each optimizer step that was applied, before the EMA takes the weights."""

    def save(self, path: Path, dtype: torch.dtype, metadata: dict[str, str], position: Position) -> None:
        """Writes the result as other programs read it, whole or not at all; `path` has the method's ending."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The trained parameters, exactly, for resuming."""

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None: ...

    def metadata(self) -> dict[str, str]:
        """The `ss_*` entries that only the method knows."""

    def curves(self) -> dict[str, float]:
        """What only the method has to show beside losses and rates; asked for every few steps."""

    def usage_hint(self, path: Path) -> str:
        """One line that says what can be done with the file or folder."""
