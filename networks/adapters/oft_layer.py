"""OFT layer: the outputs of a layer are rotated in blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from networks.adapters.adapter_layer import AdapterLayer, alpha_in
from networks.adapters.options import Dropout
from networks.adapters.weights import FileKind


class OFTLayer(AdapterLayer):
    """W + multiplier * (R^T - 1) W, with R a block-diagonal rotation of the output channels.

    Qiu et al. 2023, "Controlling Text-to-Image Diffusion by Orthogonal Finetuning", 2306.07280. Each block of R is
    (1 + Q)(1 - Q)^-1 (Cayley), with Q = `oft_blocks` - `oft_blocks`^T. `rank` is the number of blocks, or the largest
    divisor of the output channels below it. In each block the weights of all input channels keep their norms, and the
    angles between them.

    `alpha` limits the norm of Q to alpha * output channels, as LyCORIS reads it; 0, as in files made here, is no limit,
    which all programs read alike. `--scale_weight_norms` limits the norm of Q after each step instead (the paper's
    COFT). Rank dropout leaves blocks unrotated.
    """

    FILE = FileKind("OFT", ("oft_blocks",))

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
        num_out = base.weight.shape[0]
        num_blocks = max(count for count in range(1, min(rank, num_out) + 1) if num_out % count == 0)
        super().__init__(name, base, rank=num_blocks, alpha=alpha, multiplier=multiplier, dropout=dropout)
        self.alpha.zero_()
        self.scale = 0.0
        size = num_out // num_blocks
        self.oft_blocks = nn.Parameter(torch.zeros(num_blocks, size, size))

    @classmethod
    def settings_of(cls, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        return {"rank": len(tensors["oft_blocks"]), "alpha": alpha_in(tensors)}

    def scale_of(self, alpha: float) -> float:
        """The largest norm of Q; 0: no limit."""
        return alpha * self.base.weight.shape[0]

    def weight_update(self) -> torch.Tensor:
        weight = self.base.weight
        with torch.autocast(weight.device.type, enabled=False):
            change = self._rotations() - torch.eye(self.oft_blocks.shape[1], device=weight.device)
            if self.dropout.rank and self.training:
                change = change * functional.dropout(change.new_ones(len(change), 1, 1), self.dropout.rank)
            blocks = weight.to(change.dtype).reshape(*change.shape[:2], -1)
            return (change.mT @ blocks).reshape(weight.shape) * self.multiplier

    def _skew(self) -> torch.Tensor:
        """Q, (blocks, size, size)."""
        skew = self.oft_blocks - self.oft_blocks.mT
        if self.scale == 0:
            return skew
        return skew * (self.scale / (torch.linalg.vector_norm(skew) + 1e-8)).clamp(max=1)

    def _rotations(self) -> torch.Tensor:
        """R, (blocks, size, size), of determinant 1."""
        skew = self._skew().float()
        one = torch.eye(skew.shape[1], device=skew.device)
        inverse, _ = torch.linalg.inv_ex(one - skew)  # always invertible; without a wait for the device
        return (one + skew) @ inverse

    @torch.no_grad()
    def update_norm(self) -> torch.Tensor:
        """The Frobenius norm of Q: how far the rotation turns, which `--scale_weight_norms` limits."""
        return torch.linalg.vector_norm(self._skew().float())
