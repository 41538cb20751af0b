"""If these fail, sample images of a model whose schedule ends in noise alone are grey, or no images at all."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, LMSDiscreteScheduler

from library.diffusion.discrete_diffusion import DiscreteDiffusion
from library.diffusion.noise_schedule import rescale_to_zero_terminal_snr
from library.training.evaluation.samplers import SAMPLERS, advance

USUAL = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, dim=0)
ZERO_TERMINAL = rescale_to_zero_terminal_snr(USUAL)


def sampler(name: str, prediction_type: str, alphas: torch.Tensor, num_steps: int = 20):
    process = DiscreteDiffusion(alphas, prediction_type)
    scheduler = SAMPLERS[name](process)
    scheduler.set_timesteps(num_steps)
    return scheduler


def drawn(scheduler, denoise) -> torch.Tensor:
    """What a denoiser's image becomes; `denoise(x_t, t)` is its output."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 16, 16, generator=generator) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = advance(scheduler, denoise(scheduler.scale_model_input(x, t), t), t, x, generator)
    return x


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("alphas", [USUAL, ZERO_TERMINAL], ids=["usual", "zero terminal"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("num_steps", [20, 200])
def test_a_perfect_denoiser_draws_its_image(name, alphas, prediction_type, num_steps):
    """A denoiser that knows one image alone, as derived from x_t = sqrt(a) x + sqrt(1 - a) e."""
    image = torch.linspace(-2, 1, 4 * 256).view(1, 4, 16, 16)

    def denoise(x, t):
        alpha = alphas[int(t)].double()
        noise = (x - alpha.sqrt() * image) / (1 - alpha).sqrt()
        output = noise if prediction_type == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * image
        return output.float()

    found = drawn(sampler(name, prediction_type, alphas, num_steps), denoise)
    assert torch.isfinite(found).all()
    # what is left is the noise of the first timestep, of deviation 0.029, and for predicted noise rounding
    assert (found - image).square().mean().sqrt() < 0.06


@pytest.mark.parametrize("name", SAMPLERS)
def test_models_of_v_are_drawn_from_the_last_step_where_training_ended_there(name):
    assert int(sampler(name, "v_prediction", ZERO_TERMINAL).timesteps[0]) == 999
    assert 900 < int(sampler(name, "epsilon", ZERO_TERMINAL).timesteps[0]) < 990
    # on the usual schedule as ever: two begin a step before the end, 19 x 50 + 1, the others at it
    usual = 951 if name in ("ddim", "pndm") else 999
    assert int(sampler(name, "v_prediction", USUAL).timesteps[0]) == usual


def test_the_rescaled_schedule_is_diffusers_own():
    ours = sampler("ddim", "v_prediction", ZERO_TERMINAL).alphas_cumprod
    theirs = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=True
    ).alphas_cumprod
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-7)
    euler = sampler("euler_a", "v_prediction", ZERO_TERMINAL)
    np.testing.assert_allclose(euler.alphas_cumprod[:-1], theirs[:-1], rtol=2e-3)
    assert torch.isfinite(euler.sigmas).all()


def test_multistep_coefficients_are_those_that_diffusers_integrates_with_scipy():
    """Diffusers stops at a relative error of 1e-4."""
    ours = sampler("lms", "epsilon", USUAL)
    theirs = LMSDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1)
    theirs.set_timesteps(20)
    for step in range(20):
        for order in range(1, min(step + 1, 4) + 1):
            for current in range(order):
                expected = float(theirs.get_lms_coefficient(order, step, current))
                assert ours.get_lms_coefficient(order, step, current) == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 21])
def test_few_steps_are_finite(name, num_steps):
    found = drawn(sampler(name, "epsilon", USUAL, num_steps), lambda x, t: torch.zeros_like(x))
    assert torch.isfinite(found).all()
