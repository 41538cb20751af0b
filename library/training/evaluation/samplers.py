"""Samplers by name. A new one is a row of `SAMPLERS`.

Imports no Diffusers: the options and prompt files take their choices from the table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from diffusers import SchedulerMixin

    from library.models.family import ModelFamily


_LEAST_ALPHA = 2.0**-24  # where an image is computed from predicted noise, by a division by its root


def _betas(family: ModelFamily, least_alpha: float = 0.0) -> np.ndarray:
    import numpy as np

    alphas = family.alphas_cumprod().double().cpu().numpy().clip(min=least_alpha)
    return 1 - alphas / np.concatenate([[1.0], alphas[:-1]])


def _spacing(family: ModelFamily, usual: str) -> str:
    """Where the schedule ends in noise alone drawing has to start from its last step, as training did.

    "Common Diffusion Noise Schedules and Sample Steps are Flawed" (Lin et al., 2305.08891). Predicted noise says
    nothing of the image there, and drawing with it starts a little later.
    """
    if not _ends_in_noise(family):
        return usual
    return "trailing" if family.prediction_type == "v_prediction" else "leading"


def _ends_in_noise(family: ModelFamily) -> bool:
    return float(family.alphas_cumprod()[-1]) == 0


def _ddim(family: ModelFamily) -> SchedulerMixin:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        trained_betas=_betas(family, 0.0 if family.prediction_type == "v_prediction" else _LEAST_ALPHA),
        timestep_spacing=_spacing(family, "leading"),
        prediction_type=family.prediction_type,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def _euler_a(family: ModelFamily) -> SchedulerMixin:
    from diffusers import EulerAncestralDiscreteScheduler

    return EulerAncestralDiscreteScheduler(
        trained_betas=_betas(family),
        rescale_betas_zero_snr=_ends_in_noise(family),  # which keeps the last sigma finite
        timestep_spacing=_spacing(family, "linspace"),
        prediction_type=family.prediction_type,
        steps_offset=1,
    )


SAMPLERS: dict[str, Callable[[ModelFamily], SchedulerMixin]] = {"ddim": _ddim, "euler_a": _euler_a}
DEFAULT_SAMPLER = "ddim"

# every name that options and prompt files may hold; those that are no rows yet are drawn with the default one
SAMPLER_NAMES = (
    "ddim", "pndm", "lms", "euler", "euler_a", "heun", "dpm_2", "dpm_2_a", "dpmsolver", "dpmsolver++", "dpmsingle",
    "k_lms", "k_euler", "k_euler_a", "k_dpm_2", "k_dpm_2_a",
)  # fmt: skip


def sampler_row(name: str) -> str:
    """The row of `SAMPLERS` that draws for a name of `SAMPLER_NAMES`: k_euler_a is euler_a under its older name."""
    row = name.removeprefix("k_")
    return row if row in SAMPLERS else DEFAULT_SAMPLER
