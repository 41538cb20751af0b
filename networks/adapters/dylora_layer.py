"""DyLoRA layer: a LoRA whose first ranks are a LoRA of lower rank each."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from library.cli.errors import UserError
from networks.adapters.lora_layer import LoRALayer


class DyLoRALayer(LoRALayer):
    """Trains one block of `unit` ranks in each micro-batch, drawn at random, with those before it frozen.

    Valipour et al. 2022, "DyLoRA: Parameter Efficient Tuning of Pre-trained Models using Dynamic Search-Free Low-Rank
    Adaptation", 2210.07558. The ranks behind the block are left out, and the update of b ranks is scaled by alpha / b:
    the first b ranks of the file are a LoRA of rank b with the same alpha.
    """

    def __init__(self, name: str, base: nn.Linear | nn.Conv2d, *, rank: int, unit: int = 1, **settings: Any):
        if rank % unit:
            raise UserError(f"{name} has the rank {rank}, which is no multiple of unit={unit}", hint=_HINT)
        super().__init__(name, base, rank=rank, **settings)
        self.unit = unit

    def update(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().update(x)
        ranks = torch.arange(self.rank, device=x.device)
        start = self.unit * torch.randint(self.rank // self.unit, (), device=x.device)  # a tensor: without a wait
        end = start + self.unit
        in_block = (ranks >= start) & (ranks < end)
        down, up = _trained_in(in_block, self.lora_down.weight, 0), _trained_in(in_block, self.lora_up.weight, 1)
        factors = (ranks < end) * (self.multiplier * self.scale * self.rank / end)
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(down.dtype)
        hidden = self.drop_module(self._project(x, self.lora_down, down))
        hidden = functional.dropout(hidden, self.dropout.neuron)
        factors = factors if isinstance(self.base, nn.Linear) else factors[:, None, None]
        return self._project(hidden * factors.to(hidden.dtype), self.lora_up, up)

    def _project(self, x: torch.Tensor, layer: nn.Linear | nn.Conv2d, weight: torch.Tensor) -> torch.Tensor:
        """What `layer` would give with this weight."""
        return functional.linear(x, weight) if isinstance(layer, nn.Linear) else layer._conv_forward(x, weight, None)


def _trained_in(in_block: torch.Tensor, weight: torch.Tensor, dim: int) -> torch.Tensor:
    """The weight, with gradients at the ranks of the block; `dim`: that of the ranks."""
    shape = [-1 if place == dim else 1 for place in range(weight.dim())]
    return torch.where(in_block.reshape(shape), weight, weight.detach())


_HINT = "give a --network_dim, conv_dim and ranks of blocks that are multiples of it"
