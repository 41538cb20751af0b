"""Frozen weights kept in 8 bits: each layer's are brought to the precision of the computation while it is at work."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional

STORED = torch.float8_e4m3fn


@torch.no_grad()
def store_in_float8(network: nn.Module) -> None:
    """Rounds the weights of all linear and convolutional layers to 8 bits (4 of exponent, 3 of mantissa).

    Norms and biases stay as they are. What is to be attached to the layers must be attached afterwards.
    """
    for module in network.modules():
        kind = type(module)
        if kind in _FORWARDS:
            largest = torch.finfo(STORED).max
            module.weight.data = module.weight.data.clamp(-largest, largest).to(STORED)
            module.forward = partial(_FORWARDS[kind], module)


def _linear(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return functional.linear(x, layer.weight.to(x.dtype), layer.bias)


def _convolution(layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    return layer._conv_forward(x, layer.weight.to(x.dtype), layer.bias)


_FORWARDS = {nn.Linear: _linear, nn.Conv2d: _convolution}
