"""Samplers by name. A new one is a row of `SAMPLERS`.

Imports no Diffusers: the options and prompt files take their choices from the table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
    from diffusers import SchedulerMixin

    from library.models.family import ModelFamily


def _betas(alphas_cumprod: torch.Tensor) -> np.ndarray:
    import numpy as np

    alphas = alphas_cumprod.double().cpu().numpy()
    return 1 - alphas / np.concatenate([[1.0], alphas[:-1]])


def _ddim(family: ModelFamily) -> SchedulerMixin:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        trained_betas=_betas(family.alphas_cumprod()),
        prediction_type=family.prediction_type,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def _euler_a(family: ModelFamily) -> SchedulerMixin:
    from diffusers import EulerAncestralDiscreteScheduler

    return EulerAncestralDiscreteScheduler(
        trained_betas=_betas(family.alphas_cumprod()),
        prediction_type=family.prediction_type,
        steps_offset=1,
    )


SAMPLERS: dict[str, Callable[[ModelFamily], SchedulerMixin]] = {"ddim": _ddim, "euler_a": _euler_a}
