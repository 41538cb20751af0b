"""Adapter layer: what the layers of all kinds of adapters share. Each kind is a subclass in a module of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from networks.adapters.options import Dropout
from networks.adapters.weights import ALPHA, FileKind


class AdapterLayer(nn.Module, ABC):
    """The trained update of one frozen Linear or Conv2d layer: y = W x + update(x). Its state_dict is its file's.

    A kind says its `FILE`, makes its parameters in `__init__` so that the update is zero at first, and defines
    `weight_update`, from which all else follows. Where it is cheaper, `update` and `update_norm` are its own;
    `forward` is its own where it does more than add. Weights are float32 unless moved.
    """

    FILE: ClassVar[FileKind]
    alpha: torch.Tensor

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
        self._base = (base,)  # in a tuple, so that it is not registered as part of the adapter
        self.rank = rank
        self.multiplier = float(multiplier)
        self.dropout = dropout or Dropout()
        known_alpha = float(alpha or rank)
        self.scale = self.scale_of(known_alpha)  # a Python number, so that a step needs no device synchronisation
        self.register_buffer("alpha", torch.tensor(known_alpha))
        self._base_forward: Callable[[torch.Tensor], torch.Tensor] | None = None
        self.register_load_state_dict_post_hook(_take_loaded_alpha)

    @classmethod
    @abstractmethod
    def settings_of(cls, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Rank, alpha and other arguments of `__init__` by the tensors of one layer in a file; alpha None: has none."""

    def scale_of(self, alpha: float) -> float:
        """The factor of the update: alpha / rank."""
        return alpha / self.rank

    @property
    def base(self) -> nn.Linear | nn.Conv2d:
        return self._base[0]

    def trained_parameters(self) -> list[nn.Parameter]:
        """The parameters that get updates: all of them, unless a kind freezes some."""
        return list(self.parameters())

    def plus_parameters(self) -> list[nn.Parameter]:
        """Those of the trained parameters that LoRA+ trains at a higher rate."""
        return []

    def attach(self) -> None:
        """Adds the update to the base layer's forward; the layer's hooks and attributes are unchanged."""
        assert self._base_forward is None, f"{self.name} is attached already"
        self._base_forward = self.base.forward
        self.base.forward = self.forward  # type: ignore[method-assign, assignment]

    def base_output(self, x: torch.Tensor) -> torch.Tensor:
        """What the base layer gives without the update."""
        assert self._base_forward is not None, f"{self.name} is not attached"
        return self._base_forward(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = self.base_output(x)
        if self.multiplier == 0:
            return output
        return output + self.update(x).to(output.dtype)

    def update(self, x: torch.Tensor) -> torch.Tensor:
        """What is added to the base layer's output for input `x`, in the adapter's or autocast's data type."""
        weight = self.weight_update()
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(weight.dtype)
        return self.apply_weight(self.drop_module(x), weight)

    def apply_weight(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """What the base layer would give for this weight and no bias."""
        if isinstance(self.base, nn.Linear):
            return functional.linear(x, weight)
        base = self.base
        if base.padding_mode != "zeros":
            x = functional.pad(x, base._reversed_padding_repeated_twice, mode=base.padding_mode)
            return functional.conv2d(x, weight, None, base.stride, 0, base.dilation, base.groups)
        return functional.conv2d(x, weight, None, base.stride, base.padding, base.dilation, base.groups)

    def drop_module(self, x: torch.Tensor) -> torch.Tensor:
        """`x`, or zeros where module dropout drops the whole update in this micro-batch."""
        if not (self.dropout.module and self.training):
            return x
        # by a factor: without a wait for the device, and with gradients
        return x * (torch.rand((), device=x.device) >= self.dropout.module)

    def drop_channels(self, weight: torch.Tensor) -> torch.Tensor:
        """Rank dropout of kinds without ranks of their own: drops output channels of an update of the weight.

        Those that stay are scaled up, so that the mean is the same.
        """
        if not (self.dropout.rank and self.training):
            return weight
        ones = weight.new_ones(len(weight), *[1] * (weight.dim() - 1))
        return weight * functional.dropout(ones, self.dropout.rank)

    @abstractmethod
    def weight_update(self) -> torch.Tensor:
        """The update as an addend to the base layer's weight, in its shape; with gradients where they are enabled."""

    @torch.no_grad()
    def update_norm(self) -> torch.Tensor:
        """The Frobenius norm of `weight_update`."""
        return torch.linalg.vector_norm(self.weight_update().float())

    @torch.no_grad()
    def scale_update(self, factor: torch.Tensor) -> None:
        """Multiplies the update by a factor from 0 to 1, all trained parameters alike: it is linear in each of them."""
        trained = self.trained_parameters()
        for parameter in trained:
            parameter.mul_(factor ** (1 / len(trained)))

    @torch.no_grad()
    def merge(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> None:
        """Adds the update to the base layer's weight, computed in float32 on `device` and rounded to `dtype`.

        The weight keeps its own device and data type.
        """
        assert self._base_forward is None, f"{self.name} is attached: merged too, it would count twice"
        weight = self.base.weight
        merged = weight.to(device=device, dtype=torch.float32) + self.weight_update().to(device or weight.device)
        weight.copy_(merged if dtype is None else merged.to(dtype))


def _take_loaded_alpha(layer: AdapterLayer, _incompatible_keys) -> None:
    if layer.alpha.device.type != "meta":
        layer.scale = layer.scale_of(float(layer.alpha))


def alpha_in(tensors: Mapping[str, torch.Tensor]) -> float | None:
    """The alpha of one layer in a file; None where it has none."""
    return float(tensors[ALPHA]) if ALPHA in tensors else None


def tucker_product(core: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Core (r, r, h, w), (r, outputs) and (r, inputs) -> the weight of a convolution, (outputs, inputs, h, w)."""
    return torch.einsum("ijhw,io,jc->ochw", core, left, right).contiguous()
