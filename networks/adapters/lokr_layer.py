"""LoKr layer: the update is the Kronecker product of a small matrix and a large one, which may be of low rank."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from library.cli.errors import UserError
from networks.adapters.adapter_layer import AdapterLayer, alpha_in, tucker_product
from networks.adapters.options import Dropout
from networks.adapters.weights import FileKind

_SMALL, _LARGE = "lokr_w1", "lokr_w2"
_HINT = "give a whole file, and the module that made it"


@dataclass(frozen=True)
class Factors:
    """The shape of the small factor (outputs, inputs), and which of the two factors are whole: not of low rank."""

    small: tuple[int, int]
    small_is_whole: bool
    large_is_whole: bool
    has_core: bool = False

    @property
    def are_whole(self) -> bool:
        return self.small_is_whole and self.large_is_whole


class LoKrLayer(AdapterLayer):
    """W + multiplier * alpha / rank * kron(w1, w2), for a Linear or Conv2d layer.

    Yeh et al. 2023, "Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation", 2309.14859.
    `factor` is the side of w1: by default as near to that of w2 as the layer's divisors allow. w2 = w2_a w2_b where
    that is of lower rank; so is w1 with `decompose_both`. With `use_tucker` the w2 of a convolution with a kernel has
    a core. Without low rank there is no alpha: the factor is 1. Names and shapes are those of LyCORIS; rank dropout
    drops output channels of the update.
    """

    FILE = FileKind(
        "LoKr", (), optional=(_SMALL, _LARGE, "lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
    )

    def __init__(
        self,
        name: str,
        base: nn.Linear | nn.Conv2d,
        *,
        rank: int,
        alpha: float | None,
        multiplier: float = 1.0,
        dropout: Dropout | None = None,
        factor: int = -1,
        use_tucker: bool = False,
        decompose_both: bool = False,
        factors: Factors | None = None,
    ):
        shape = tuple(base.weight.shape)
        self.factors = factors or _factors(shape, rank, factor, use_tucker=use_tucker, decompose_both=decompose_both)
        alpha = None if self.factors.are_whole else alpha
        super().__init__(name, base, rank=rank, alpha=alpha, multiplier=multiplier, dropout=dropout)
        (rows, columns), kernel = self.factors.small, shape[2:]
        if self.factors.small_is_whole:
            self.lokr_w1 = _random(rows, columns)
        else:
            self.lokr_w1_a, self.lokr_w1_b = _random(rows, rank), _random(rank, columns)
        rows, columns = shape[0] // rows, shape[1] // columns
        if self.factors.large_is_whole:
            self.lokr_w2 = nn.Parameter(torch.zeros(rows, columns, *kernel))
        elif self.factors.has_core:
            self.lokr_t2 = _random(rank, rank, *kernel)
            self.lokr_w2_a, self.lokr_w2_b = _random(rank, rows), nn.Parameter(torch.zeros(rank, columns))
        else:
            self.lokr_w2_a = _random(rows, rank)
            self.lokr_w2_b = nn.Parameter(torch.zeros(rank, columns * math.prod(kernel)))

    @classmethod
    def settings_of(cls, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        alpha = alpha_in(tensors)
        small, large = _SMALL in tensors, _LARGE in tensors
        for name, is_whole in ((_SMALL, small), (_LARGE, large)):
            if not is_whole and not {f"{name}_a", f"{name}_b"} <= tensors.keys():
                raise UserError(f"a layer of the LoKr file has neither {name} nor {name}_a and {name}_b", hint=_HINT)
        if not small:
            rank = tensors["lokr_w1_b"].shape[0]
            shape = len(tensors["lokr_w1_a"]), tensors["lokr_w1_b"].shape[1]
        else:
            rank = max(1, int(alpha or 1)) if large else len(tensors["lokr_w2_b"])
            shape = tensors[_SMALL].shape[0], tensors[_SMALL].shape[1]
        return {"rank": rank, "alpha": alpha, "factors": Factors(shape, small, large, "lokr_t2" in tensors)}

    def scale_of(self, alpha: float) -> float:
        return 1.0 if self.factors.are_whole else alpha / self.rank

    def weight_update(self) -> torch.Tensor:
        with torch.autocast(self.alpha.device.type, enabled=False):
            small, large = self._small(), self._large()
            small = small.reshape(*small.shape, *[1] * (large.dim() - 2))
            product = torch.kron(small * (self.multiplier * self.scale), large)
        return self.drop_channels(product)

    def _small(self) -> torch.Tensor:
        return self.lokr_w1 if self.factors.small_is_whole else self.lokr_w1_a @ self.lokr_w1_b

    def _large(self) -> torch.Tensor:
        """(outputs, inputs), of a convolution (outputs, inputs, h, w)."""
        if self.factors.large_is_whole:
            return self.lokr_w2
        if self.factors.has_core:
            return tucker_product(self.lokr_t2, self.lokr_w2_a, self.lokr_w2_b)
        num_in, *kernel = self.base.weight.shape[1:]
        product = self.lokr_w2_a @ self.lokr_w2_b
        return product.reshape(len(product), num_in // self.factors.small[1], *kernel)

    @torch.no_grad()
    def update_norm(self) -> torch.Tensor:
        """The Frobenius norm of `weight_update`: the product of those of the factors."""
        norms = [torch.linalg.vector_norm(factor.float()) for factor in (self._small(), self._large())]
        return norms[0] * norms[1] * abs(self.multiplier * self.scale)


def _random(*shape: int) -> nn.Parameter:
    parameter = nn.Parameter(torch.empty(shape))
    nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))
    return parameter


def _factors(shape: Sequence[int], rank: int, factor: int, *, use_tucker: bool, decompose_both: bool) -> Factors:
    (out_small, out_large), (in_small, in_large) = (two_factors(size, factor) for size in shape[:2])
    small_is_whole = not (decompose_both and rank < max(out_small, in_small) / 2)
    large_is_whole = rank >= max(out_large, in_large) / 2
    has_kernel = any(size > 1 for size in shape[2:])
    return Factors(
        (out_small, in_small), small_is_whole, large_is_whole, use_tucker and has_kernel and not large_is_whole
    )


def two_factors(size: int, factor: int) -> tuple[int, int]:
    """Two factors of a size, the smaller first: `factor` and its partner where it divides the size.

    Else the two nearest to each other whose smaller one is at most `factor`; -1: whatever it is.
    """
    if factor > 0 and size % factor == 0:
        small = min(factor, size // factor)
    else:
        most = math.isqrt(size) if factor < 0 else min(math.isqrt(size), factor)
        small = max(divisor for divisor in range(1, most + 1) if size % divisor == 0)
    return small, size // small
