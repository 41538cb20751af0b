"""LoRA layer: the low-rank update of one layer of the base model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from networks.lora_options import Dropout

Projection = nn.Linear | nn.Conv2d


class LoRALayer(nn.Module):
    """y = W x + multiplier * alpha / rank * up(down(x)), for a frozen Linear or Conv2d layer.

    Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", with alpha as a saved buffer. A convolution's
    `down` has its kernel size, stride, padding and dilation; its `up` is 1x1. Weights are float32 unless moved.
    """

    alpha: torch.Tensor
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
        super().__init__()
        self.name = name
        self.rank = rank
        self.multiplier = float(multiplier)
        self.dropout = dropout or Dropout()
        known_alpha = float(alpha or rank)
        self.scale = known_alpha / rank  # a Python number, so that a step needs no device synchronisation
        self.register_buffer("alpha", torch.tensor(known_alpha))
        self.lora_down, self.lora_up = _make_projections(base, rank)
        nn.init.kaiming_uniform_(self.lora_down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_up.weight)
        self._base = (base,)  # in a tuple, so that it is not registered as part of the adapter
        self._base_forward: Callable[[torch.Tensor], torch.Tensor] | None = None
        self.register_load_state_dict_post_hook(_take_loaded_alpha)

    @property
    def base(self) -> nn.Linear | nn.Conv2d:
        return self._base[0]

    def attach(self) -> None:
        """Adds the update to the base layer's forward; the layer's hooks and attributes are unchanged."""
        assert self._base_forward is None, f"{self.name} is attached already"
        self._base_forward = self.base.forward
        self.base.forward = self.forward  # type: ignore[method-assign, assignment]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert self._base_forward is not None, f"{self.name} is not attached"
        output = self._base_forward(x)
        if self.multiplier == 0:
            return output
        return output + self.update(x).to(output.dtype)

    def update(self, x: torch.Tensor) -> torch.Tensor:
        """What is added to the base layer's output for input `x`, in the adapter's or autocast's data type."""
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.lora_down.weight.dtype)
        hidden = self.lora_down(x)
        if self.dropout.neuron:
            hidden = functional.dropout(hidden, self.dropout.neuron, self.training)
        if self.dropout.rank and self.training:
            hidden = self._drop_ranks(hidden)
        if self.dropout.module and self.training:  # by a factor: without a wait for the device, and with gradients
            hidden = hidden * (torch.rand((), device=hidden.device) >= self.dropout.module)
        return self.lora_up(hidden * (self.multiplier * self.scale))  # scaled at the rank, where the tensor is small

    def _drop_ranks(self, hidden: torch.Tensor) -> torch.Tensor:
        """Drops ranks of each sample; those that stay are scaled up, so that the mean is the same.

        hidden: (B, rank, h, w) of a convolution, else (B, ..., rank).
        """
        ones = [1] * (hidden.dim() - 2)
        is_convolution = isinstance(self.base, nn.Conv2d)
        shape = [len(hidden), self.rank, *ones] if is_convolution else [len(hidden), *ones, self.rank]
        return hidden * functional.dropout(hidden.new_ones(shape), self.dropout.rank)

    @torch.no_grad()
    def weight_update(self) -> torch.Tensor:
        """The update as an addend to the base layer's weight, in its shape, float32."""
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
    def merge(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> None:
        """Adds the update to the base layer's weight, computed in float32 on `device` and rounded to `dtype`.

        The weight keeps its own device and data type.
        """
        assert self._base_forward is None, f"{self.name} is attached: merged too, it would count twice"
        weight = self.base.weight
        merged = weight.to(device=device, dtype=torch.float32) + self.weight_update().to(device or weight.device)
        weight.copy_(merged if dtype is None else merged.to(dtype))


def _make_projections(base: nn.Linear | nn.Conv2d, rank: int) -> tuple[Projection, Projection]:
    if isinstance(base, nn.Linear):
        return nn.Linear(base.in_features, rank, bias=False), nn.Linear(rank, base.out_features, bias=False)
    geometry: dict[str, Any] = {
        name: getattr(base, name) for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    }
    down = nn.Conv2d(base.in_channels, rank, **geometry, bias=False)
    return down, nn.Conv2d(rank, base.out_channels, 1, bias=False)


def _take_loaded_alpha(layer: LoRALayer, _incompatible_keys) -> None:
    if layer.alpha.device.type != "meta":
        layer.scale = float(layer.alpha) / layer.rank
