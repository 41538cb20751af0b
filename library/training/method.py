"""The second seam: which parameters learn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from library.models.family import ModelFamily


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that share a learning rate, under the name that the rate has in logs."""

    name: str
    params: list[nn.Parameter]
    learning_rate: float


class TrainingMethod(Protocol):
    """What is trained on a model family: an adapter, the whole model, new words.

    The trainer calls `prepare` once, then the hooks; it never asks which method it has.
    """

    trains_text_encoders: bool
    architecture_suffix: str  # behind the model's architecture in `modelspec.architecture`: "/lora", or nothing
    file_suffix: str  # ending of the files that `save` writes: ".safetensors"

    def prepare(self, family: ModelFamily, *, seed: int, default_learning_rate: float, checkpointing: bool) -> None:
        """Creates or chooses what learns, in float32, on the CPU. New weights depend on `seed` alone."""

    def param_groups(self) -> list[ParamGroup]: ...

    def trainable_modules(self) -> list[nn.Module]:
        """Modules to move to the device and to set to training mode."""

    def on_epoch_start(self, epoch: int) -> None: ...

    def on_step_start(self) -> None: ...

    def save(self, path: Path, dtype: torch.dtype, metadata: dict[str, str]) -> None:
        """Writes the result as other programs read it; `path` is a temporary name that keeps the ending."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What learns, exactly, for resuming."""

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None: ...

    def metadata(self) -> dict[str, str]:
        """The `ss_*` entries that only the method knows."""

    def usage_hint(self, path: Path) -> str:
        """One line that says what can be done with the file."""
