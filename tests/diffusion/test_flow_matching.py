"""If these fail, models that are trained on straight lines to noise are trained on other lines, or sampled so."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from library.diffusion.flow_matching import FlowMatching
from library.diffusion.options import LossOptions, NoiseOptions
from library.training.evaluation.samplers import advance, make_scheduler
from tests.diffusion.schedules import draws


def test_noisy_latents_and_target_lie_on_the_line_from_image_to_noise():
    x, e, t = draws(0, 3, 4, 5, 6), draws(1, 3, 4, 5, 6), np.array([0.0, 250.0, 1000.0])
    given = [torch.tensor(value, dtype=torch.float32) for value in (x, e, t)]
    s = t[:, None, None, None] / 1000
    np.testing.assert_allclose(FlowMatching().add_noise(*given), (1 - s) * x + s * e, atol=1e-6)
    np.testing.assert_allclose(FlowMatching().target(*given), e - x, atol=1e-6)


@pytest.mark.parametrize(("shift", "first", "stop"), [(1.0, 0, 1000), (3.0, 0, 1000), (3.0, 400, 600)])
def test_drawn_timesteps_are_shifted_logit_normal(shift, first, stop):
    """The median of a logit-normal distribution is 1/2, and its quartiles are where |logit| is 0.6745."""
    generator = torch.Generator().manual_seed(0)
    drawn = FlowMatching(shift).draw_timesteps(40_000, range(first, stop), generator).double().numpy()
    for share, logit in ((0.25, -0.674490), (0.5, 0.0), (0.75, 0.674490)):
        s = 1 / (1 + np.exp(-logit))
        expected = first + (stop - first) * shift * s / (1 + (shift - 1) * s)
        assert np.quantile(drawn, share) == pytest.approx(expected, abs=0.012 * (stop - first))


def test_uniform_timesteps():
    generator = torch.Generator().manual_seed(0)
    drawn = FlowMatching(logit_normal=False).draw_timesteps(40_000, range(1000), generator).numpy()
    np.testing.assert_allclose(np.quantile(drawn, [0.1, 0.5, 0.9]), [100, 500, 900], atol=12)


def test_huber_deltas_fall_from_1_without_noise_to_c_in_noise_alone():
    times = torch.tensor([0.0, 500.0, 1000.0])
    process = FlowMatching()
    snr = process.huber_deltas(times, LossOptions(huber_schedule="snr", huber_c=0.1))
    # sigma = s / (1 - s) is 0, 1 and infinite: (1 - c) / (1 + sigma)^2 + c
    np.testing.assert_allclose(snr, [1.0, 0.9 / 4 + 0.1, 0.1], rtol=1e-6)
    exponential = process.huber_deltas(times, LossOptions(huber_schedule="exponential", huber_c=0.1))
    np.testing.assert_allclose(exponential, [1.0, 0.1**0.5, 0.1], rtol=1e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_perfect_model_is_sampled_to_its_image_and_as_diffusers_samples(shift):
    image, noise = torch.tensor(draws(2, 1, 4, 8, 8)), torch.tensor(draws(3, 1, 4, 8, 8))
    ours, theirs = make_scheduler("euler", FlowMatching(shift)), FlowMatchEulerDiscreteScheduler(shift=shift)
    ours.set_timesteps(9)
    theirs.set_timesteps(sigmas=np.linspace(1, 1 / 9, 9))
    np.testing.assert_allclose(ours.timesteps, theirs.timesteps, rtol=1e-5)
    curved = [noise.clone(), noise.clone()]
    straight = noise.clone()
    for t, u in zip(ours.timesteps, theirs.timesteps, strict=True):
        straight = advance(ours, noise - image, t, straight, torch.Generator())
        curved[0] = advance(ours, curved[0].sin() * t / 1000, t, curved[0], torch.Generator())
        curved[1] = theirs.step(curved[1].sin() * u / 1000, u, curved[1]).prev_sample
    torch.testing.assert_close(straight, image, atol=1e-5, rtol=0)
    torch.testing.assert_close(curved[0], curved[1], atol=1e-5, rtol=0)


def test_options_of_noise_schedules_are_refused():
    errors = FlowMatching().findings(NoiseOptions(zero_terminal_snr=True), LossOptions(min_snr_gamma=5.0))
    found = [str(error) for error in errors]
    assert any("--min_snr_gamma" in text for text in found) and any("--zero_terminal_snr" in text for text in found)
    assert list(FlowMatching().findings(NoiseOptions(), LossOptions())) == []
