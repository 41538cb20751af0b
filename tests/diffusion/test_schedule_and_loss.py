"""If these fail, a run minimises something else than the options promise."""

import math

import numpy as np
import pytest
import torch

from library.diffusion.loss import min_snr_weights, weighted_loss
from library.diffusion.noise import make_noise, sample_timesteps
from library.diffusion.options import NoiseOptions
from library.diffusion.schedule import NoiseSchedule, target_of

# Stable Diffusion's schedule, in float64, independently of torch
BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
ALPHAS = np.cumprod(1 - BETAS)
SCHEDULE = NoiseSchedule(torch.tensor(ALPHAS, dtype=torch.float32))


def draws(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def test_noisy_latents_and_targets_follow_the_formulas():
    x, e, t = draws(0, 3, 4, 5, 6), draws(1, 3, 4, 5, 6), np.array([0, 185, 999])
    a = ALPHAS[t][:, None, None, None]
    as_torch = [torch.tensor(v, dtype=torch.float32) for v in (x, e)] + [torch.tensor(t)]
    np.testing.assert_allclose(SCHEDULE.add_noise(*as_torch), a**0.5 * x + (1 - a) ** 0.5 * e, atol=2e-6)
    np.testing.assert_allclose(
        target_of("v_prediction", SCHEDULE, *as_torch), a**0.5 * e - (1 - a) ** 0.5 * x, atol=2e-6
    )
    assert target_of("epsilon", SCHEDULE, *as_torch) is as_torch[1]


@pytest.mark.parametrize(
    ("prediction_type", "expected"),
    [
        # published reference values for gamma 5 at timesteps 0, 185, 370, 740, 999
        ("epsilon", [0.0042537241, 1.0, 1.0, 1.0, 1.0]),
        ("v_prediction", [0.0042501087, 0.7766324878, 0.4732946157, 0.0608350486, 0.0046600942]),
    ],
)
def test_min_snr_weights(prediction_type, expected):
    snr = SCHEDULE.snr(torch.tensor([0, 185, 370, 740, 999]))
    np.testing.assert_allclose(min_snr_weights(snr, 5.0, prediction_type), expected, rtol=3e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("gamma", [None, 5.0])
def test_weighted_loss_is_the_mean_of_weighted_picture_errors(prediction_type, gamma):
    p, y = draws(2, 4, 4, 3, 5), draws(3, 4, 4, 3, 5)
    w, t = np.array([1.0, 0.5, 1.0, 0.0]), np.array([3, 100, 500, 900])
    snr = ALPHAS[t] / (1 - ALPHAS[t])
    weight = w.copy()
    if gamma is not None:
        weight *= np.minimum(snr, gamma) / (snr + (prediction_type == "v_prediction"))
    expected = np.mean(((p - y) ** 2).mean(axis=(1, 2, 3)) * weight)
    loss = weighted_loss(
        torch.tensor(p, dtype=torch.float32),
        torch.tensor(y, dtype=torch.float32),
        loss_weights=torch.tensor(w, dtype=torch.float32),
        timesteps=torch.tensor(t),
        schedule=SCHEDULE,
        prediction_type=prediction_type,
        options=NoiseOptions(min_snr_gamma=gamma),
    )
    assert loss.item() == pytest.approx(expected, rel=2e-5)


def test_noise_offset_shifts_whole_channels_by_its_deviation():
    latents = torch.zeros(512, 4, 16, 16)
    plain = make_noise(latents, NoiseOptions(), torch.Generator().manual_seed(1))
    shifted = make_noise(latents, NoiseOptions(noise_offset=0.5), torch.Generator().manual_seed(1))
    shift = shifted - plain
    assert shift.flatten(2).std(dim=2).max() < 1e-6  # a constant over each channel
    assert shift.mean(dim=(2, 3)).std().item() == pytest.approx(0.5, rel=0.05)
    # the channel means of plain noise have deviation 1/sqrt(256)
    assert plain.mean(dim=(2, 3)).std().item() == pytest.approx(1 / 16, rel=0.1)
    assert (plain.mean().item(), plain.std().item()) == (pytest.approx(0, abs=0.01), pytest.approx(1, rel=0.01))


def test_timesteps_are_uniform_over_the_schedule():
    t = sample_timesteps(20_000, 1000, torch.Generator().manual_seed(0)).numpy()
    assert t.min() == 0 and t.max() == 999
    counts = np.bincount(t // 100)
    # each tenth holds 2,000 of 20,000, with deviation sqrt(20000 * .1 * .9) = 42
    assert np.abs(counts - 2000).max() < 5 * math.sqrt(1800)


def test_noise_depends_on_its_generator_alone():
    latents = torch.zeros(2, 4, 8, 8)
    torch.manual_seed(1)
    first = make_noise(latents, NoiseOptions(noise_offset=0.1), torch.Generator().manual_seed(9))
    torch.manual_seed(2)
    assert torch.equal(first, make_noise(latents, NoiseOptions(noise_offset=0.1), torch.Generator().manual_seed(9)))
