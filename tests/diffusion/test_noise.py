"""If these fail, a run adds other noise than its options promise, or an option changes draws that are not its own.

Statistics are over 2,000 micro-batches of (2, 4, 8, 8), each with a generator of its own, as in training.
"""

import math

import numpy as np
import pytest
import torch

from library.data.randomness import derive_seed
from library.diffusion.noise import add_pyramid, make_noise
from library.diffusion.options import NoiseOptions, timestep_range
from tests.diffusion.schedules import process

SHAPE, NUM_DRAWS = (2, 4, 8, 8), 2000


def generator(*key: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed("noise", *key))


def many(latents: torch.Tensor | None = None, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """(target, added) of all draws, (2000, 2, 4, 8, 8)."""
    latents = torch.zeros(SHAPE) if latents is None else latents
    made = [make_noise(latents, NoiseOptions(**options), generator(index)) for index in range(NUM_DRAWS)]
    return torch.stack([noise.target for noise in made]), torch.stack([noise.added for noise in made])


def root_mean_square(values: torch.Tensor) -> float:
    return values.double().square().mean().sqrt().item()


def channel_mean_std(noise: torch.Tensor) -> float:
    return root_mean_square(noise.mean(dim=(-2, -1)))


def autocorrelation(noise: torch.Tensor, lag: int) -> float:
    return (noise[..., lag:] * noise[..., :-lag]).mean().item()


@pytest.mark.parametrize(
    ("options", "variance_of_offsets"),
    [
        ({}, 0.0),
        ({"noise_offset": 0.1}, 0.01),
        ({"noise_offset": 0.5}, 0.25),
        ({"noise_offset": 0.5, "noise_offset_random_strength": True}, 0.25 / 3),  # mean of s^2 for s in [0, 0.5]
    ],
)
def test_noise_offset_adds_a_variance_to_whole_channels(options, variance_of_offsets):
    target, added = many(**options)
    assert torch.equal(target, added)
    # pixels: 1 + v; means of the 64 pixels of a channel: 1/64 + v
    assert root_mean_square(target) == pytest.approx(math.sqrt(1 + variance_of_offsets), rel=0.01)
    assert channel_mean_std(target) == pytest.approx(math.sqrt(1 / 64 + variance_of_offsets), rel=0.03)
    assert target.mean().item() == pytest.approx(0, abs=0.02)
    plain, _ = many()
    shift = target - plain
    assert shift.flatten(3).std(dim=3).max() < 1e-6  # a constant over each channel, on the same plain noise


def test_random_strengths_are_uniform_and_of_each_image():
    options = NoiseOptions(noise_offset=0.5, noise_offset_random_strength=True)
    latents = torch.zeros(4000, 16, 8, 8)
    shift = make_noise(latents, options, generator(0)).target - make_noise(latents, NoiseOptions(), generator(0)).target
    strengths = shift[:, :, 0, 0].square().mean(dim=1)  # of one image: s^2, give or take
    # E[s^2] = 1/12; Var of the mean of 16 squares given s is s^4 / 8, so E[x^2] = E[s^4] (1 + 1/8) = 0.5^4 / 5 * 9/8
    assert strengths.mean().item() == pytest.approx(0.25 / 3, rel=0.05)
    assert strengths.square().mean().item() == pytest.approx(0.5**4 / 5 * 9 / 8, rel=0.1)


# published reference values: the means of channels, without sign, and the deviations that come of them
MEANS = [0.398327, 0.317318, 0.168631, 2.136509, 0.493915, 0.333905, 0.074019, 1.908278]
ADAPTIVE = {
    (0.1, 0.05): [0.119916, 0.115866, 0.108431, 0.206824, 0.124696, 0.116695, 0.103701, 0.195414],
    (0.0, 0.2): [0.079665, 0.063464, 0.033726, 0.427302, 0.098783, 0.066781, 0.014804, 0.381656],
    (None, 0.2): [0.079665, 0.063464, 0.033726, 0.427302, 0.098783, 0.066781, 0.014804, 0.381656],
    (0.1, -0.2): [0.020335, 0.036536, 0.066274, 0.0, 0.001217, 0.033219, 0.085196, 0.0],
}


@pytest.mark.parametrize(("offset", "scale"), ADAPTIVE)
def test_adaptive_scale_adds_to_the_offset_and_never_goes_below_zero(offset, scale):
    signs = torch.tensor([1, -1, 1, -1, -1, 1, -1, 1])
    ripple = torch.tensor([1.0, -1.0]).repeat(32).view(8, 8)  # has mean 0
    latents = (torch.tensor(MEANS) * signs).view(2, 4, 1, 1) + 3 * ripple
    with_scale = make_noise(latents, NoiseOptions(noise_offset=offset, adaptive_noise_scale=scale), generator(1))
    reference = make_noise(latents, NoiseOptions(noise_offset=1.0), generator(1))
    plain = make_noise(latents, NoiseOptions(), generator(1))
    # all three draw the same constants: their ratio is the deviation
    ratio = (with_scale.target - plain.target) / (reference.target - plain.target)
    np.testing.assert_allclose(ratio.mean(dim=(2, 3)).flatten(), ADAPTIVE[offset, scale], atol=2e-5)


@pytest.mark.parametrize(
    ("options", "deviation"),
    [
        ({"ip_noise_gamma": 0.1}, 0.1),
        ({"ip_noise_gamma": 0.5, "ip_noise_gamma_random_strength": True}, math.sqrt(0.25 / 3)),
    ],
)
def test_input_perturbation_is_added_and_not_to_be_found(options, deviation):
    target, added = many(**options)
    plain, _ = many()
    assert torch.equal(target, plain)
    extra = added - target
    assert root_mean_square(extra) == pytest.approx(deviation, rel=0.02)
    assert extra.mean().item() == pytest.approx(0, abs=0.002)
    # independent of the noise that is to be found: 1,024,000 products of deviation `deviation`
    assert (extra * target).mean().item() == pytest.approx(0, abs=5 * deviation / math.sqrt(extra.numel()))


# published reference values, measured over 1,500 draws of (2, 4, 8, 8), by the number of levels and the discount:
# deviation before each micro-batch's is made 1, that of pixels after it (about 0, not about the micro-batch's mean),
# that of channel means, and what neighbours at distance 1, 2 and 4 have in common
PYRAMIDS = {
    (1, 0.3): (1.4125, 0.9999, 0.1263, [-0.001, 0.002, 0.003]),
    (2, 0.3): (1.4327, 1.0004, 0.1562, [0.0248, 0.0213, 0.0095]),
    (6, 0.3): (1.4351, 1.0006, 0.1679, [0.0287, 0.0252, 0.0133]),
    (6, 0.8): (1.6592, 1.0116, 0.4485, [0.2793, 0.2477, 0.1780]),
    (10, 1.0): (1.8658, 1.0209, 0.5812, [0.4407, 0.4004, 0.3128]),
}


@pytest.mark.parametrize(("levels", "discount"), PYRAMIDS)
def test_pyramid_noise_has_the_statistics_of_the_field(levels, discount):
    deviation, of_pixels, of_means, in_common = PYRAMIDS[levels, discount]
    target, added = many(multires_noise_iterations=levels, multires_noise_discount=discount)
    assert torch.equal(target, added)
    torch.testing.assert_close(target.flatten(1).std(dim=1), torch.ones(NUM_DRAWS), atol=1e-5, rtol=0)
    assert root_mean_square(target) == pytest.approx(of_pixels, rel=0.003)
    assert channel_mean_std(target) == pytest.approx(of_means, rel=0.03)
    for lag, expected in zip((1, 2, 4), in_common, strict=True):
        assert autocorrelation(target, lag) == pytest.approx(expected, abs=0.012)
    plain, _ = many()
    # plain noise is in it unchanged: its share is 1 / deviation
    assert (plain * target).mean().item() == pytest.approx(1 / deviation, rel=0.02)


def test_pyramid_noise_goes_on_from_the_offset():
    # published reference values: channel means with and without an offset of 0.1
    options = {"multires_noise_iterations": 6, "multires_noise_discount": 0.3}
    assert channel_mean_std(many(**options)[0]) == pytest.approx(0.1664, rel=0.03)
    assert channel_mean_std(many(**options, noise_offset=0.1)[0]) == pytest.approx(0.1804, rel=0.03)


def enlarge(coarse: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Linear interpolation along an axis, pixels being areas."""
    length = coarse.shape[axis]
    places = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
    low = np.floor(places).astype(int)
    share = (places - low).reshape([-1 if each == axis else 1 for each in range(coarse.ndim)])
    upper = np.take(coarse, np.minimum(low + 1, length - 1), axis)
    return np.take(coarse, low, axis) * (1 - share) + upper * share


def test_pyramid_noise_is_the_sum_of_enlarged_levels():
    base, shape = torch.randn(1, 4, 32, 48, generator=generator(3)), (1, 4)
    found = add_pyramid(base, 10, 0.7, generator(4)).numpy()
    same = generator(4)
    ratios = (2 + 2 * torch.rand(10, generator=same)).tolist()
    total, sizes = base.double().numpy(), []
    for level, ratio in enumerate(ratios):
        sizes.append((max(1, int(32 / ratio**level)), max(1, int(48 / ratio**level))))
        coarse = torch.randn(*shape, *sizes[-1], generator=same).double().numpy()
        total = total + 0.7**level * enlarge(enlarge(coarse, 32, 2), 48, 3)
        if 1 in sizes[-1]:
            break
    assert sizes[0] == (32, 48) and 3 <= len(sizes) < 10  # it stops at a level of one row
    np.testing.assert_allclose(found, total / total.std(ddof=1), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "first", "last"),
    [
        ({}, 0, 999),
        ({"max_timestep": 500}, 0, 499),
        ({"min_timestep": 500}, 500, 999),
        ({"min_timestep": 100, "max_timestep": 200}, 100, 199),
        ({"min_timestep": 500, "max_timestep": 500}, 500, 500),
        ({"max_timestep": 1}, 0, 0),
    ],
)
def test_timesteps_are_uniform_over_their_range(options, first, last):
    timesteps = timestep_range(NoiseOptions(**options), 1000)
    t = torch.cat([process().draw_timesteps(10, timesteps, generator(index)) for index in range(NUM_DRAWS)]).numpy()
    assert t.dtype == np.int64 and (t.min(), t.max()) == (first, last)
    size = last - first + 1
    counts = np.bincount(t - first, minlength=size)
    # chi-square with size - 1 degrees of freedom: its deviation is sqrt(2 (size - 1))
    chi_square = ((counts - len(t) / size) ** 2 / (len(t) / size)).sum()
    assert abs(chi_square - (size - 1)) <= 5 * math.sqrt(2 * size)


@pytest.mark.parametrize(
    "options",
    [
        {"noise_offset": 0.1, "noise_offset_random_strength": True},
        {"adaptive_noise_scale": 0.5},
        {"multires_noise_iterations": 6},
        {"ip_noise_gamma": 0.1, "ip_noise_gamma_random_strength": True},
        {"min_timestep": 500},
    ],
)
def test_options_leave_plain_noise_and_timesteps_as_they_were(options):
    def draw(options):
        source, latents = generator(7), torch.ones(SHAPE)
        timesteps = process().draw_timesteps(2, timestep_range(options, 1000), source)
        torch.manual_seed(len(str(options)))  # global randomness has no part in it
        return timesteps, make_noise(latents, options, source)

    timesteps, noise = draw(NoiseOptions(**options))
    plain_timesteps, plain = draw(NoiseOptions())
    if "min_timestep" not in options:
        assert torch.equal(timesteps, plain_timesteps)
    if "ip_noise_gamma" in options or "min_timestep" in options:
        assert torch.equal(noise.target, plain.target)
    elif "multires_noise_iterations" in options:
        expected = add_pyramid(plain.target, 6, 0.3, _after_plain_noise()).numpy()
        np.testing.assert_array_equal(noise.target, expected)
    else:
        assert (noise.target - plain.target).flatten(2).std(dim=2).max() < 1e-6


def _after_plain_noise() -> torch.Generator:
    source = generator(7)
    torch.randint(0, 1000, (2,), generator=source)
    torch.randn(SHAPE, generator=source)
    return source
