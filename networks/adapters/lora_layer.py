"""LoRA layer: the low-rank update of one layer of the base model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from networks.adapters.adapter_layer import AdapterLayer, alpha_in
from networks.adapters.options import Dropout
from networks.adapters.weights import DOWN, LORA_FILE

Projection = nn.Linear | nn.Conv2d


class LoRALayer(AdapterLayer):
    """y = W x + multiplier * alpha / rank * up(down(x)), for a frozen Linear or Conv2d layer.

    Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", with alpha as a saved buffer. A convolution's
    `down` has its kernel size, stride, padding and dilation; its `up` is 1x1.
    """

    FILE = LORA_FILE
    lora_down: Projection
    lora_up: Projection

    def __init__(
        self,
        name: str,
        base: nn.Linear | nn.Conv2d,
        *,
        rank: int,
        alpha: float | None,
        multiplier: float = 1.0,
        dropout: Dropout | None = None,
    ):
        super().__init__(name, base, rank=rank, alpha=alpha, multiplier=multiplier, dropout=dropout)
        self.lora_down, self.lora_up = _make_projections(base, rank)
        nn.init.kaiming_uniform_(self.lora_down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_up.weight)

    @classmethod
    def settings_of(cls, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        return {"rank": len(tensors[DOWN]), "alpha": alpha_in(tensors)}

    def plus_parameters(self) -> list[nn.Parameter]:
        return list(self.lora_up.parameters())

    def update(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.lora_down.weight.dtype)
        hidden = self.lora_down(x)
        if self.dropout.neuron:
            hidden = functional.dropout(hidden, self.dropout.neuron, self.training)
        if self.dropout.rank and self.training:
            hidden = self._drop_ranks(hidden)
        hidden = self.drop_module(hidden)
        return self.lora_up(hidden * (self.multiplier * self.scale))  # scaled at the rank, where the tensor is small

    def _drop_ranks(self, hidden: torch.Tensor) -> torch.Tensor:
        """Drops ranks of each sample; those that stay are scaled up, so that the mean is the same.

        hidden: (B, rank, h, w) of a convolution, else (B, ..., rank).
        """
        ones = [1] * (hidden.dim() - 2)
        is_convolution = isinstance(self.base, nn.Conv2d)
        shape = [len(hidden), self.rank, *ones] if is_convolution else [len(hidden), *ones, self.rank]
        return hidden * functional.dropout(hidden.new_ones(shape), self.dropout.rank)

    def weight_update(self) -> torch.Tensor:
        down, up = self.lora_down.weight.float(), self.lora_up.weight.float()
        product = (up.flatten(1) @ down.flatten(1)).reshape(self.base.weight.shape)
        return product * (self.multiplier * self.scale)

    @torch.no_grad()
    def update_norm(self) -> torch.Tensor:
        """The Frobenius norm of `weight_update`, from products of rank x rank: tr(up^T up down down^T)."""
        down, up = self.lora_down.weight.float().flatten(1), self.lora_up.weight.float().flatten(1)
        square = ((up.T @ up) * (down @ down.T)).sum()
        return square.clamp(min=0).sqrt() * abs(self.multiplier * self.scale)

    @torch.no_grad()
    def scale_update(self, factor: torch.Tensor) -> None:
        self.lora_down.weight.mul_(factor.sqrt())
        self.lora_up.weight.mul_(factor.sqrt())


def _make_projections(base: nn.Linear | nn.Conv2d, rank: int) -> tuple[Projection, Projection]:
    if isinstance(base, nn.Linear):
        return nn.Linear(base.in_features, rank, bias=False), nn.Linear(rank, base.out_features, bias=False)
    geometry: dict[str, Any] = {
        name: getattr(base, name) for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    }
    down = nn.Conv2d(base.in_channels, rank, **geometry, bias=False)
    return down, nn.Conv2d(rank, base.out_channels, 1, bias=False)
