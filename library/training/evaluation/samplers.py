"""Samplers by name. A new one is a row of `SAMPLERS`.

Imports no Diffusers: the options and prompt files take their choices from the table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch

    from library.models.family import ModelFamily


class Scheduler(Protocol):
    """What sampling uses of a scheduler of Diffusers."""

    timesteps: torch.Tensor

    @property
    def init_noise_sigma(self) -> float | torch.Tensor: ...

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None: ...

    def scale_model_input(self, sample: torch.Tensor, timestep: Any) -> torch.Tensor: ...

    def step(
        self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, *, generator: torch.Generator | None
    ) -> Any: ...


_LEAST_ALPHA = 2.0**-24  # the image computed from predicted noise is divided by the root of this


def _betas(family: ModelFamily, least_alpha: float = 0.0) -> np.ndarray:
    import numpy as np

    alphas = family.alphas_cumprod().double().cpu().numpy().clip(min=least_alpha)
    return 1 - alphas / np.concatenate([[1.0], alphas[:-1]])


def _spacing(family: ModelFamily, usual: str) -> str:
    """Timestep spacing: with zero terminal SNR, sampling has to start from the last timestep, as training did.

    "Common Diffusion Noise Schedules and Sample Steps are Flawed" (Lin et al., 2305.08891). For an epsilon model the
    predicted noise says nothing about the image there, and sampling starts a little earlier in the schedule.
    """
    if not _ends_in_noise(family):
        return usual
    return "trailing" if family.prediction_type == "v_prediction" else "leading"


def _ends_in_noise(family: ModelFamily) -> bool:
    return float(family.alphas_cumprod()[-1]) == 0


def _ddim(family: ModelFamily) -> Scheduler:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    return DDIMScheduler(
        trained_betas=_betas(family, 0.0 if family.prediction_type == "v_prediction" else _LEAST_ALPHA),
        timestep_spacing=_spacing(family, "leading"),
        prediction_type=family.prediction_type,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def _euler_a(family: ModelFamily) -> Scheduler:
    from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler

    return EulerAncestralDiscreteScheduler(
        trained_betas=_betas(family),
        rescale_betas_zero_snr=_ends_in_noise(family),  # keeps the last sigma finite
        timestep_spacing=_spacing(family, "linspace"),
        prediction_type=family.prediction_type,
        steps_offset=1,
    )


SAMPLERS: dict[str, Callable[[ModelFamily], Scheduler]] = {"ddim": _ddim, "euler_a": _euler_a}
DEFAULT_SAMPLER = "ddim"

# every name that options and prompt files may hold; those without a row yet use the default sampler
SAMPLER_NAMES = (
    "ddim", "pndm", "lms", "euler", "euler_a", "heun", "dpm_2", "dpm_2_a", "dpmsolver", "dpmsolver++", "dpmsingle",
    "k_lms", "k_euler", "k_euler_a", "k_dpm_2", "k_dpm_2_a",
)  # fmt: skip


def sampler_row(name: str) -> str:
    """The row of `SAMPLERS` for a name of `SAMPLER_NAMES`: k_euler_a is an older name of euler_a."""
    row = name.removeprefix("k_")
    return row if row in SAMPLERS else DEFAULT_SAMPLER
