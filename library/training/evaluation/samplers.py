"""Samplers by name. A new one is a row of `SAMPLERS`.

Imports no Diffusers: the options and prompt files take their choices from the table.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch

    from library.diffusion.discrete_diffusion import DiscreteDiffusion
    from library.diffusion.process import NoiseProcess


class Scheduler(Protocol):
    """What sampling uses of a scheduler of Diffusers."""

    timesteps: torch.Tensor

    @property
    def init_noise_sigma(self) -> float | torch.Tensor: ...

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None: ...

    def scale_model_input(self, sample: torch.Tensor, timestep: Any) -> torch.Tensor: ...

    def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, **kwargs: Any) -> Any: ...


_LEAST_ALPHA = 2.0**-24  # the image computed from predicted noise is divided by the root of this


_STABLE = "leading"  # timesteps as the programs that Stable Diffusion came with space them
_EVEN = "linspace"  # and as those by K. Crowson do: the first and the last timestep, and evenly between
_LEAST_LOG_SNR = -5.1  # half of it, where predicted noise still says something about the image


def _betas(process: DiscreteDiffusion, least_alpha: float = 0.0) -> np.ndarray:
    import numpy as np

    alphas = process.schedule.alphas_cumprod.double().cpu().numpy().clip(min=least_alpha)
    return 1 - alphas / np.concatenate([[1.0], alphas[:-1]])


def _spacing(process: DiscreteDiffusion, usual: str) -> str:
    """Timestep spacing: with zero terminal SNR, sampling has to start from the last timestep, as training did.

    "Common Diffusion Noise Schedules and Sample Steps are Flawed" (Lin et al., 2305.08891). For an epsilon model the
    predicted noise says nothing about the image there, and sampling starts a little earlier in the schedule.
    """
    if not process.schedule.ends_in_noise:
        return usual
    return "trailing" if process.predicts_v else "leading"


@dataclass(frozen=True)
class SamplerRow:
    """A scheduler of Diffusers: its module and class, the timestep spacing of its origin, further settings.

    `spacing` None: it has one of its own. `divides`: it divides by the signal that is left, which must not be 0 at any
    timestep.
    """

    module: str
    scheduler: str
    spacing: str | None = _EVEN
    settings: Mapping[str, Any] = field(default_factory=dict)
    divides: bool = True

    def __call__(self, process: DiscreteDiffusion) -> Scheduler:
        """A scheduler on the noise schedule that the model is trained on."""
        is_exact_at_zero = not self.divides and process.predicts_v
        settings = dict(self.settings)
        if self.spacing is not None:
            settings |= {"timestep_spacing": _spacing(process, self.spacing), "steps_offset": 1}
        elif process.schedule.ends_in_noise and not process.predicts_v:
            settings |= {"lambda_min_clipped": _LEAST_LOG_SNR}
        make = getattr(importlib.import_module(self.module), self.scheduler)
        return make(
            trained_betas=_betas(process, 0.0 if is_exact_at_zero else _LEAST_ALPHA),
            prediction_type=process.prediction_type,
            **settings,
        )


_DIFFUSERS = "diffusers.schedulers.scheduling_"
_LAST_STEP = {"set_alpha_to_one": False}  # ends at the noise of timestep 0

SAMPLERS: dict[str, SamplerRow] = {
    "ddim": SamplerRow(
        f"{_DIFFUSERS}ddim", "DDIMScheduler", _STABLE, {"clip_sample": False, **_LAST_STEP}, divides=False
    ),
    "pndm": SamplerRow(f"{_DIFFUSERS}pndm", "PNDMScheduler", _STABLE, {"skip_prk_steps": True, **_LAST_STEP}),
    "lms": SamplerRow("library.training.evaluation.lms", "LMSScheduler"),
    "euler": SamplerRow(f"{_DIFFUSERS}euler_discrete", "EulerDiscreteScheduler"),
    "euler_a": SamplerRow(f"{_DIFFUSERS}euler_ancestral_discrete", "EulerAncestralDiscreteScheduler"),
    "heun": SamplerRow(f"{_DIFFUSERS}heun_discrete", "HeunDiscreteScheduler"),
    "dpm_2": SamplerRow(f"{_DIFFUSERS}k_dpm_2_discrete", "KDPM2DiscreteScheduler"),
    "dpm_2_a": SamplerRow(f"{_DIFFUSERS}k_dpm_2_ancestral_discrete", "KDPM2AncestralDiscreteScheduler"),
    "dpmsolver": SamplerRow(
        f"{_DIFFUSERS}dpmsolver_multistep", "DPMSolverMultistepScheduler",
        settings={"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
    ),
    "dpmsolver++": SamplerRow(f"{_DIFFUSERS}dpmsolver_multistep", "DPMSolverMultistepScheduler"),
    "dpmsingle": SamplerRow(
        f"{_DIFFUSERS}dpmsolver_singlestep", "DPMSolverSinglestepScheduler", None, {"lower_order_final": True}
    ),
}  # fmt: skip
_OLDER_NAMES = tuple(f"k_{name}" for name in ("lms", "euler", "euler_a", "dpm_2", "dpm_2_a"))

# every name that options and prompt files may hold
SAMPLER_NAMES = (*SAMPLERS, *_OLDER_NAMES)


def sampler_row(name: str) -> str:
    """The row of `SAMPLERS` for a name of `SAMPLER_NAMES`: k_euler_a is an older name of euler_a."""
    return name.removeprefix("k_")


def make_scheduler(name: str, process: NoiseProcess, *, spacing: str | None = None) -> Scheduler:
    """The scheduler of a row of `SAMPLERS` for a process; a flow has Euler's method, whatever the row.

    `spacing`: of the timesteps, as Diffusers names it, in place of the row's.
    """
    from library.diffusion.discrete_diffusion import DiscreteDiffusion
    from library.training.evaluation.flow_euler import FlowEulerScheduler

    if not isinstance(process, DiscreteDiffusion):
        return FlowEulerScheduler(process)
    row = SAMPLERS[name]
    return (row if spacing is None else replace(row, spacing=spacing))(process)


def advance(
    scheduler: Scheduler, output: torch.Tensor, timestep: Any, latents: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """The latents of the next timestep. Ancestral samplers draw their noise from `generator`."""
    draws = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    return scheduler.step(output, timestep, latents, **draws).prev_sample
