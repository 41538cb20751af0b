"""Without these transparent parts of images are trained on, or opaque ones are not."""

import numpy as np
import pytest
import torch

from library.diffusion.discrete_diffusion import DiscreteDiffusion
from library.diffusion.loss import weighted_loss
from library.diffusion.options import LossOptions

ALPHAS = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
PROCESS = DiscreteDiffusion(torch.tensor(ALPHAS, dtype=torch.float32), "epsilon")


def _loss(prediction, target, masks, *, weights=(1.0, 1.0), gamma=None):
    return weighted_loss(
        torch.tensor(prediction, dtype=torch.float32),
        torch.tensor(target, dtype=torch.float32),
        loss_weights=torch.tensor(weights),
        timesteps=torch.tensor([100, 700]),
        process=PROCESS,
        options=LossOptions(min_snr_gamma=gamma),
        masks=None if masks is None else torch.tensor(masks, dtype=torch.float32),
    )


def _draw(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape)


def test_masks_weigh_each_square_before_the_mean():
    # opacity that rises from 0 to 1 over two images of 64 x 64, as means of 8 x 8 pixels: published reference
    # values of the corners are 0.0277744, 0.4721645, 0.5278355 and 0.9722255
    opacity = np.linspace(0, 1, 2 * 64 * 64).reshape(2, 8, 8, 8, 8)
    masks = opacity.mean(axis=(2, 4))[:, None]
    corners = [[0.0277744, 0.4721645], [0.5278355, 0.9722255]]
    np.testing.assert_allclose(masks[:, 0, [0, -1], [0, -1]], corners, atol=1e-6)
    ones, zeros = np.ones((2, 4, 8, 8)), np.zeros((2, 4, 8, 8))
    assert _loss(ones, zeros, masks).item() == pytest.approx(0.5, rel=1e-6)  # the mean opacity
    assert _loss(ones, zeros, masks, weights=(0.0, 2.0)).item() == pytest.approx(masks[1].mean(), rel=1e-6)
    prediction, target = _draw(2, 4, 8, 8), _draw(2, 4, 8, 8) * 0.5
    expected = ((prediction - target) ** 2 * masks).mean()
    assert _loss(prediction, target, masks).item() == pytest.approx(expected, rel=1e-5)
    snr = ALPHAS[[100, 700]] / (1 - ALPHAS[[100, 700]])
    weights = np.array([1.0, 0.5]) * np.minimum(snr, 5) / snr
    expected = (((prediction - target) ** 2 * masks).mean(axis=(1, 2, 3)) * weights).mean()
    assert _loss(prediction, target, masks, weights=(1.0, 0.5), gamma=5.0).item() == pytest.approx(expected, rel=2e-5)


def test_what_is_masked_out_is_not_trained():
    prediction = torch.randn(2, 4, 6, 6, requires_grad=True)
    masks = torch.zeros(2, 1, 6, 6)
    masks[:, :, :3] = 1
    weighted_loss(
        prediction,
        torch.zeros(2, 4, 6, 6),
        loss_weights=torch.ones(2),
        timesteps=torch.tensor([100, 700]),
        process=PROCESS,
        options=LossOptions(),
        masks=masks,
    ).backward()
    assert torch.all(prediction.grad[:, :, 3:] == 0)
    assert torch.all(prediction.grad[:, :, :3] != 0)


def test_a_mask_of_ones_changes_nothing():
    prediction, target = _draw(2, 4, 8, 8), _draw(2, 4, 8, 8) * 2
    assert torch.equal(_loss(prediction, target, np.ones((2, 1, 8, 8))), _loss(prediction, target, None))
