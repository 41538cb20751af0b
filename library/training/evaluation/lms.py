"""The linear multistep sampler without SciPy, which Diffusers integrates its coefficients with."""

from __future__ import annotations

import numpy as np
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler


class LMSScheduler(LMSDiscreteScheduler):
    """Diffusers' scheduler; its coefficients are integrals of polynomials of degree 3: Gauss-Legendre is exact."""

    def get_lms_coefficient(self, order: int, t: int, current_order: int) -> float:
        """The integral of a Lagrange polynomial from `sigmas[t]` to `sigmas[t + 1]` (Adams-Bashforth)."""
        sigmas = np.asarray(self.sigmas, np.float64)
        nodes, weights = np.polynomial.legendre.leggauss(2)
        half = (sigmas[t + 1] - sigmas[t]) / 2
        sigma = sigmas[t] + half * (nodes + 1)
        others = [sigmas[t - number] for number in range(order) if number != current_order]
        values = np.prod([(sigma - other) / (sigmas[t - current_order] - other) for other in others], axis=0)
        return float((half * weights * values).sum())
