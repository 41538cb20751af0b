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
        start = self.unit * int(torch.randint(self.rank // self.unit, ()))  # of the CPU's generator: no wait
        end = start + self.unit
        down, up = self.lora_down.weight, self.lora_up.weight
        down = torch.cat([down[:start].detach(), down[start:end]])
        up = torch.cat([up[:, :start].detach(), up[:, start:end]], dim=1)
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(down.dtype)
        hidden = self.drop_module(functional.dropout(self._project(x, self.lora_down, down), self.dropout.neuron))
        return self._project(hidden * (self.multiplier * self.scale * self.rank / end), self.lora_up, up)

    def _project(self, x: torch.Tensor, layer: nn.Linear | nn.Conv2d, weight: torch.Tensor) -> torch.Tensor:
        """What `layer` would give with this weight, of some of its ranks."""
        if isinstance(layer, nn.Linear):
            return functional.linear(x, weight)
        return layer._conv_forward(x, weight, None)


_HINT = "give a --network_dim, conv_dim and ranks of blocks that are multiples of it"
