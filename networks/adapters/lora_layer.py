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
from networks.adapters.weights import DOWN, LORA_FILE, MAGNITUDE, is_by_input

Projection = nn.Linear | nn.Conv2d


class LoRALayer(AdapterLayer):
    """y = W x + multiplier * alpha / rank * up(down(x)), for a frozen Linear or Conv2d layer.

    Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", with alpha as a saved buffer. A convolution's
    `down` has its kernel size, stride, padding and dilation; its `up` is 1x1.

    `use_dora`: the adapted weight V = W + alpha / rank * up down is scaled to the trained norm `dora_scale` (m) of each
    output channel: m * V / |V| (Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", 2402.09353). |V| gets
    no gradients (section 4.3). `multiplier` is then a factor of the whole difference to W. m begins as |W|. Older
    files of LyCORIS have norms of input channels: `dora_axis` 1; dropout of neurons and ranks does nothing there.
    """

    FILE = LORA_FILE
    lora_down: Projection
    lora_up: Projection
    dora_scale: nn.Parameter | None  # (out, 1), of convolutions (out, 1, 1, 1); with dora_axis 1 (1, in) ...

    def __init__(
        self,
        name: str,
        base: nn.Linear | nn.Conv2d,
        *,
        rank: int,
        alpha: float | None,
        multiplier: float = 1.0,
        dropout: Dropout | None = None,
        use_dora: bool = False,
        dora_axis: int = 0,
    ):
        super().__init__(name, base, rank=rank, alpha=alpha, multiplier=multiplier, dropout=dropout)
        self.lora_down, self.lora_up = _make_projections(base, rank)
        nn.init.kaiming_uniform_(self.lora_down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_up.weight)
        self._dora_axis = dora_axis
        magnitude = nn.Parameter(_channel_norms(base.weight, dora_axis).to(self.alpha.device)) if use_dora else None
        self.register_parameter("dora_scale", magnitude)

    @classmethod
    def settings_of(cls, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        dora = {"use_dora": MAGNITUDE in tensors, "dora_axis": int(is_by_input(tensors))}
        return {"rank": len(tensors[DOWN]), "alpha": alpha_in(tensors), **dora}

    def plus_parameters(self) -> list[nn.Parameter]:
        return list(self.lora_up.parameters())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.dora_scale is None or self.multiplier == 0:
            return super().forward(x)
        output = self.base_output(x)
        return output + self.drop_module(self._dora_change(x, output)).to(output.dtype)

    def _dora_change(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """multiplier * (m / |V| * V - W) x, from the base layer's output W x + b."""
        assert self.dora_scale is not None
        if self._dora_axis == 1:
            update = self.weight_update()
            return self.apply_weight(x if torch.is_autocast_enabled(x.device.type) else x.to(update.dtype), update)
        factor = (self.dora_scale / self._adapted_norms()).to(output.dtype).flatten()  # (out,)
        bias = self.base.bias
        if isinstance(self.base, nn.Conv2d):
            factor = factor[:, None, None]
            bias = None if bias is None else bias[:, None, None]
        product = output if bias is None else output - bias.to(output.dtype)
        return self.multiplier * (factor - 1) * product + factor * self._up(self._hidden(x)).to(output.dtype)

    @torch.no_grad()
    def _adapted_norms(self) -> torch.Tensor:
        """|V| of each channel, in the shape of `dora_scale`; not 0, where W has zeros."""
        return _divisors(self.base.weight.float() + self._product() * self.scale, self._dora_axis)

    def update(self, x: torch.Tensor) -> torch.Tensor:
        assert self.dora_scale is None, "of a DoRA the update depends on the base layer's output"
        return self._up(self.drop_module(self._hidden(x)))

    def _hidden(self, x: torch.Tensor) -> torch.Tensor:
        """down(x), with dropout of neurons and ranks."""
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.lora_down.weight.dtype)
        hidden = self.lora_down(x)
        if self.dropout.neuron:
            hidden = functional.dropout(hidden, self.dropout.neuron, self.training)
        if self.dropout.rank and self.training:
            hidden = self._drop_ranks(hidden)
        return hidden

    def _up(self, hidden: torch.Tensor) -> torch.Tensor:
        factor = self.multiplier * self.scale
        return self.lora_up(hidden if factor == 1 else hidden * factor)  # scaled at the rank, where the tensor is small

    def _drop_ranks(self, hidden: torch.Tensor) -> torch.Tensor:
        """Drops ranks of each sample; those that stay are scaled up, so that the mean is the same.

        hidden: (B, rank, h, w) of a convolution, else (B, ..., rank).
        """
        ones = [1] * (hidden.dim() - 2)
        is_convolution = isinstance(self.base, nn.Conv2d)
        shape = [len(hidden), self.rank, *ones] if is_convolution else [len(hidden), *ones, self.rank]
        return hidden * functional.dropout(hidden.new_ones(shape), self.dropout.rank)

    def _product(self) -> torch.Tensor:
        """up @ down in the shape of the base layer's weight, float32, under autocast too."""
        with torch.autocast(self.alpha.device.type, enabled=False):
            down, up = self.lora_down.weight.float(), self.lora_up.weight.float()
            return (up.flatten(1) @ down.flatten(1)).reshape(self.base.weight.shape)

    def weight_update(self) -> torch.Tensor:
        if self.dora_scale is None:
            return self._product() * (self.multiplier * self.scale)
        weight = self.base.weight.float()
        adapted = weight + self._product().to(weight.device) * self.scale
        magnitude = self.dora_scale.float().to(weight.device)
        return self.multiplier * (magnitude / _divisors(adapted, self._dora_axis) * adapted - weight)

    @torch.no_grad()
    def update_norm(self) -> torch.Tensor:
        """The Frobenius norm of the low-rank update, from products of rank x rank: tr(up^T up down down^T)."""
        down, up = self.lora_down.weight.float().flatten(1), self.lora_up.weight.float().flatten(1)
        square = ((up.T @ up) * (down @ down.T)).sum()
        return square.clamp(min=0).sqrt() * abs(self.multiplier * self.scale)

    @torch.no_grad()
    def scale_update(self, factor: torch.Tensor) -> None:
        self.lora_down.weight.mul_(factor.sqrt())
        self.lora_up.weight.mul_(factor.sqrt())


@torch.no_grad()
def _channel_norms(weight: torch.Tensor, axis: int) -> torch.Tensor:
    """The norm of a weight's part for each channel of an axis, such as (out, 1) or (1, in, 1, 1), float32."""
    norms = torch.linalg.vector_norm(weight.float().transpose(0, axis).flatten(1), dim=1)
    return norms.reshape(*[1] * axis, -1, *[1] * (weight.dim() - 1 - axis))


def _divisors(weight: torch.Tensor, axis: int) -> torch.Tensor:
    return _channel_norms(weight, axis).clamp(min=torch.finfo(torch.float32).eps)


def _make_projections(base: nn.Linear | nn.Conv2d, rank: int) -> tuple[Projection, Projection]:
    if isinstance(base, nn.Linear):
        return nn.Linear(base.in_features, rank, bias=False), nn.Linear(rank, base.out_features, bias=False)
    geometry: dict[str, Any] = {
        name: getattr(base, name) for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    }
    down = nn.Conv2d(base.in_channels, rank, **geometry, bias=False)
    return down, nn.Conv2d(rank, base.out_channels, 1, bias=False)
