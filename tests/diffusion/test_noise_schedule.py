"""If these fail, images are mixed with other amounts of noise than the model was made for."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from library.diffusion.discrete_diffusion import DiscreteDiffusion
from library.diffusion.loss_weights import timestep_weights
from library.diffusion.noise_schedule import NoiseSchedule, rescale_to_zero_terminal_snr
from library.diffusion.options import LossOptions
from tests.diffusion.schedules import ALPHAS, draws, process, schedule


def test_noisy_latents_and_targets_follow_the_formulas():
    x, e, t = draws(0, 3, 4, 5, 6), draws(1, 3, 4, 5, 6), np.array([0, 185, 999])
    a = ALPHAS[t][:, None, None, None]
    as_torch = [torch.tensor(v, dtype=torch.float32) for v in (x, e)] + [torch.tensor(t)]
    np.testing.assert_allclose(schedule().add_noise(*as_torch), a**0.5 * x + (1 - a) ** 0.5 * e, atol=2e-6)
    np.testing.assert_allclose(process("v_prediction").target(*as_torch), a**0.5 * e - (1 - a) ** 0.5 * x, atol=2e-6)
    assert process().target(*as_torch) is as_torch[1]


def test_zero_terminal_snr_is_algorithm_1_of_the_paper():
    rescaled = rescale_to_zero_terminal_snr(schedule().alphas_cumprod)
    # published reference values: the first ten and the last ten of 1000
    first = [0.99914998, 0.99823350, 0.99731266, 0.99638766, 0.99545830, 0.99452484, 0.99358720, 0.99264514, 0.99169880]
    last = [
        1.6530386e-05, 1.3001931e-05, 9.9095496e-06, 7.2474850e-06, 5.0101753e-06,
        3.1919690e-06, 1.7873161e-06, 7.9076517e-07, 1.9679634e-07, 0.0,
    ]  # fmt: skip
    np.testing.assert_allclose(rescaled[:9], first, rtol=1e-6)
    np.testing.assert_allclose(rescaled[-10:], last, rtol=2e-4)
    roots = np.sqrt(ALPHAS)
    expected = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
    np.testing.assert_allclose(rescaled, expected, rtol=1e-4)
    theirs = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=True
    ).alphas_cumprod
    torch.testing.assert_close(rescaled, theirs, atol=1e-7, rtol=1e-4)
    assert torch.equal(rescale_to_zero_terminal_snr(rescaled), rescaled)
    assert NoiseSchedule(rescaled).ends_in_noise and not schedule().ends_in_noise


WEIGHTS_AT_THE_LAST_STEP = {
    # by what is predicted and which weights: the limits for SNR -> 0
    ("epsilon", "min_snr_gamma"): 1.0,
    ("v_prediction", "min_snr_gamma"): 0.0,
    ("v_prediction", "scale_v_pred_loss_like_noise_pred"): 0.0,
    ("v_prediction", "debiased_estimation_loss"): 1.0,
}


@pytest.mark.parametrize(("prediction_type", "name"), WEIGHTS_AT_THE_LAST_STEP)
def test_weights_follow_the_rescaled_schedule_to_its_end(prediction_type, name):
    rescaled = NoiseSchedule(rescale_to_zero_terminal_snr(schedule().alphas_cumprod))
    options = LossOptions(**{name: 5.0 if name == "min_snr_gamma" else True})
    weights = timestep_weights(rescaled.snr(torch.arange(1000)), prediction_type, options)
    assert torch.isfinite(weights).all()
    assert weights[-1].item() == pytest.approx(WEIGHTS_AT_THE_LAST_STEP[prediction_type, name], abs=1e-7)
    # halfway, the new SNR gives another weight than the old one: sqrt(alphas) stretched by hand
    root, first, last = ALPHAS[600] ** 0.5, ALPHAS[0] ** 0.5, ALPHAS[999] ** 0.5
    alpha = ((root - last) * first / (first - last)) ** 2
    snr = alpha / (1 - alpha)
    expected = {
        "min_snr_gamma": min(snr, 5) / (snr if prediction_type == "epsilon" else snr + 1),
        "scale_v_pred_loss_like_noise_pred": alpha,
        "debiased_estimation_loss": 1 - alpha,
    }[name]
    assert weights[600].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["constant", "exponential", "snr"])
def test_huber_borders_are_finite_where_the_snr_is_zero(kind):
    rescaled = DiscreteDiffusion(rescale_to_zero_terminal_snr(schedule().alphas_cumprod), "epsilon")
    borders = rescaled.huber_deltas(torch.arange(1000), LossOptions(huber_schedule=kind))
    assert torch.isfinite(borders).all()
    assert borders[-1].item() == pytest.approx(0.1, rel=5e-3)
