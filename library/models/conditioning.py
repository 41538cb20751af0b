"""Conditioning: what the text encoders say of a batch of prompts, as each model family's own tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from library.models.device_copies import to_device

ConditioningT = TypeVar("ConditioningT", bound="Conditioning")


@dataclass
class Conditioning:
    """The base of a family's dataclass of tensors, each (B, ...); caches hold them under the names of its fields."""

    def arrays(self, index: int) -> dict[str, np.ndarray]:
        """The tensors of one prompt by name, float32, without the dimension of the batch."""
        fields = dataclasses.fields(self)
        return {field.name: getattr(self, field.name)[index].float().cpu().numpy() for field in fields}

    @classmethod
    def from_arrays(
        cls: type[ConditioningT], prompts: Sequence[Mapping[str, np.ndarray]], device: torch.device
    ) -> ConditioningT:
        """A batch of what `arrays` gave for each prompt, on the device."""
        names = [field.name for field in dataclasses.fields(cls)]
        stacked = {name: torch.stack([torch.from_numpy(arrays[name]) for arrays in prompts]) for name in names}
        return cls(**{name: to_device(tensor, device) for name, tensor in stacked.items()})


@dataclass
class TextStates(Conditioning):
    """Hidden states of one text encoder, (B, tokens, width).

    Or (layers, B, tokens, width) with separate ones for each cross-attention layer, in the order of
    `ModelFamily.cross_attention_layers`.
    """

    hidden_states: torch.Tensor
