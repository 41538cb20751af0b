"""Low-rank factors of a layer's update by singular value decomposition, and how many of them to keep."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Factors:
    """Singular value decomposition of a matrix: left (out, n), values (n,) descending, right (n, in); float32."""

    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor

    def halves(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The best approximation of a rank (Eckart and Young 1936), as up (out, rank) and down (rank, in).

        Both have the root of the singular values, so that neither is too small for half precision.
        """
        root = self.values[:rank].sqrt()
        return self.left[:, :rank] * root, root[:, None] * self.right[:rank]


def matrix_factors(matrix: torch.Tensor) -> Factors:
    """Of a matrix (out, in)."""
    left, values, right = torch.linalg.svd(matrix.float(), full_matrices=False)
    return Factors(left, values, right)


def product_factors(up: torch.Tensor, down: torch.Tensor) -> Factors:
    """Of up @ down, (out, r) and (r, in), from matrices of r x r: the product itself is never made."""
    left, upper = torch.linalg.qr(up.float())
    right, lower = torch.linalg.qr(down.float().T)
    inner_left, values, inner_right = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    return Factors(left @ inner_left, values, inner_right @ right.T)


def _by_ratio(values: torch.Tensor, ratio: float) -> int:
    return int((values > values[0] / ratio).sum())


def _by_sum(values: torch.Tensor, share: float) -> int:
    return _num_to_reach(values.double(), share)


def _by_norm(values: torch.Tensor, share: float) -> int:
    return _num_to_reach(values.double() ** 2, share**2)


def _num_to_reach(parts: torch.Tensor, share: float) -> int:
    """How many parts, from the largest, hold this share of their sum."""
    sums = parts.cumsum(0) / parts.sum()
    return int((sums < share).sum()) + 1


# method of --dynamic_method -> the rank that it keeps of descending singular values
DYNAMIC: dict[str, Callable[[torch.Tensor, float], int]] = {
    "sv_ratio": _by_ratio,
    "sv_fro": _by_norm,
    "sv_cumulative": _by_sum,
}


def dynamic_rank(values: torch.Tensor, method: str, parameter: float, most: int) -> int:
    """The rank to keep by a method of `DYNAMIC`: at least 1, at most `most`; 1 where all values are zero."""
    if not math.isfinite(float(values[0])) or float(values[0]) == 0:
        return 1
    return max(1, min(DYNAMIC[method](values, parameter), most, len(values)))
