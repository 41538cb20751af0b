"""LoHa layer: the update is the elementwise product of two low-rank products."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from networks.adapters.adapter_layer import AdapterLayer, alpha_in, tucker_product
from networks.adapters.options import Dropout
from networks.adapters.weights import FileKind


class LoHaLayer(AdapterLayer):
    """W + multiplier * alpha / rank * (w1_a w1_b) * (w2_a w2_b), with * elementwise, for a Linear or Conv2d layer.

    Hyeon-Woo et al. 2021, "FedPara: Low-rank Hadamard Product", 2108.06098: of rank r * r with twice the weights of
    rank r. `use_tucker`: a convolution with a kernel has a core of its own in each product (their proposition 3).
    `w2_a` is zero at first. Names and shapes are those of LyCORIS; rank dropout drops output channels of the update.
    """

    FILE = FileKind("LoHa", ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), optional=("hada_t1", "hada_t2"))

    def __init__(
        self,
        name: str,
        base: nn.Linear | nn.Conv2d,
        *,
        rank: int,
        alpha: float | None,
        multiplier: float = 1.0,
        dropout: Dropout | None = None,
        use_tucker: bool = False,
    ):
        super().__init__(name, base, rank=rank, alpha=alpha, multiplier=multiplier, dropout=dropout)
        num_out, num_in, *kernel = base.weight.shape
        self.has_core = use_tucker and any(size > 1 for size in kernel)
        shapes = [(num_out, rank), (rank, base.weight[0].numel())]
        if self.has_core:
            shapes = [(rank, num_out), (rank, num_in)]
            self.hada_t1 = nn.Parameter(torch.randn(rank, rank, *kernel) * 0.1)
            self.hada_t2 = nn.Parameter(torch.randn(rank, rank, *kernel) * 0.1)
        self.hada_w1_a = nn.Parameter(torch.randn(shapes[0]) * 0.1)
        self.hada_w1_b = nn.Parameter(torch.randn(shapes[1]))
        self.hada_w2_a = nn.Parameter(torch.zeros(shapes[0]))
        self.hada_w2_b = nn.Parameter(torch.randn(shapes[1]))

    @classmethod
    def settings_of(cls, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        rank = len(tensors["hada_w1_b"])
        return {"rank": rank, "alpha": alpha_in(tensors), "use_tucker": "hada_t1" in tensors}

    def weight_update(self) -> torch.Tensor:
        with torch.autocast(self.alpha.device.type, enabled=False):
            if self.has_core:
                first = tucker_product(self.hada_t1, self.hada_w1_a, self.hada_w1_b)
                second = tucker_product(self.hada_t2, self.hada_w2_a, self.hada_w2_b)
            else:
                first, second = self.hada_w1_a @ self.hada_w1_b, self.hada_w2_a @ self.hada_w2_b
            product = (first * second).reshape(self.base.weight.shape)
        return self.drop_channels(product * (self.multiplier * self.scale))
