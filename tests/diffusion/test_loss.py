"""If these fail, a run minimises something else than the options promise."""

import itertools

import numpy as np
import pytest
import torch

from library.diffusion.loss import weighted_loss
from library.diffusion.loss_weights import min_snr_weights, timestep_weights
from library.diffusion.options import LossOptions
from tests.diffusion.schedules import ALPHAS, draws, process, schedule, snr_at

TIMESTEPS = [0, 185, 370, 740, 999]  # of the published reference values below


def loss_of(prediction, target, options, *, t, weights=None, masks=None, prediction_type="epsilon", dtype=None):
    dtype = dtype or torch.float32
    return weighted_loss(
        torch.as_tensor(prediction, dtype=dtype),
        torch.as_tensor(target, dtype=dtype),
        loss_weights=torch.ones(len(t), dtype=dtype) if weights is None else torch.tensor(weights, dtype=dtype),
        timesteps=torch.as_tensor(t),
        process=process(prediction_type, dtype),
        options=options,
        masks=None if masks is None else torch.tensor(masks, dtype=dtype),
    )


@pytest.mark.parametrize(
    ("prediction_type", "gamma", "expected"),
    [
        ("epsilon", 5.0, [0.0042537241, 1.0, 1.0, 1.0, 1.0]),
        ("v_prediction", 5.0, [0.0042501087, 0.7766324878, 0.4732946157, 0.0608350486, 0.0046600942]),
        ("epsilon", 0.5, [0.000425372, 0.143805161, 0.556424439, 1.0, 1.0]),
        ("v_prediction", 1.0, [0.000850022, 0.223367512, 0.473294616, 0.060835049, 0.004660094]),
        ("epsilon", 20.0, [0.017014896, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_min_snr_weights(prediction_type, gamma, expected):
    snr = schedule().snr(torch.tensor(TIMESTEPS))
    np.testing.assert_allclose(min_snr_weights(snr, gamma, prediction_type), expected, rtol=3e-5)


OTHER_WEIGHTS = {
    "scale v": (
        "v_prediction",
        {"scale_v_pred_loss_like_noise_pred": True},
        [0.999001026, 0.776632488, 0.473294616, 0.060835049, 0.004660094],
    ),
    "v like 0.1": ("epsilon", {"v_pred_like_loss": 0.1}, [1.1001, 1.128761, 1.211285, 2.643789, 22.458794]),
    "v like 1": ("epsilon", {"v_pred_like_loss": 1.0}, [2.001, 2.28761, 3.112849, 17.437893, 215.587936]),
    "debiased": (
        "epsilon",
        {"debiased_estimation_loss": True},
        [0.031622779, 0.536293149, 1.054917, 3.929108, 14.614648],
    ),
    "debiased v": (
        "v_prediction",
        {"debiased_estimation_loss": True},
        [0.000999001, 0.223367512, 0.526705384, 0.939164937, 0.99533987],
    ),
}


@pytest.mark.parametrize("name", OTHER_WEIGHTS)
def test_other_weights(name):
    prediction_type, options, expected = OTHER_WEIGHTS[name]
    weights = timestep_weights(schedule().snr(torch.tensor(TIMESTEPS)), prediction_type, LossOptions(**options))
    np.testing.assert_allclose(weights, expected, rtol=3e-5)


def test_errors_of_v_are_scaled_to_errors_of_the_noise_that_v_implies():
    # what the weights are for, from the definitions: v = sqrt(a) e - sqrt(1 - a) x and x_t = sqrt(a) x + sqrt(1 - a) e
    t = np.array([40, 500, 930])
    a = ALPHAS[t][:, None, None, None]
    x, e, v = draws(5, 3, 4, 6, 6), draws(6, 3, 4, 6, 6), draws(7, 3, 4, 6, 6)
    noisy = a**0.5 * x + (1 - a) ** 0.5 * e
    implied = a**0.5 * v + (1 - a) ** 0.5 * noisy
    found = loss_of(
        v,
        a**0.5 * e - (1 - a) ** 0.5 * x,
        LossOptions(scale_v_pred_loss_like_noise_pred=True),
        t=t,
        prediction_type="v_prediction",
    )
    assert found.item() == pytest.approx(((implied - e) ** 2).mean(), rel=1e-5)
    # and the other way round, where noise is predicted
    of_noise = ((implied - e) ** 2).mean(axis=(1, 2, 3))
    of_v = ((v - (a**0.5 * e - (1 - a) ** 0.5 * x)) ** 2).mean(axis=(1, 2, 3))
    found = loss_of(implied, e, LossOptions(v_pred_like_loss=0.25), t=t)
    assert found.item() == pytest.approx((of_noise + 0.25 * of_v).mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "c", "scale", "expected"),
    [
        ("constant", 0.1, 1.0, [0.1] * 5),
        ("constant", 0.03, 2.0, [0.06] * 5),
        ("exponential", 0.1, 1.0, [1.0, 0.653130531, 0.426579505, 0.18197009, 0.10023053]),
        ("exponential", 0.03, 2.0, [2.0, 1.045436, 0.546468198, 0.149313748, 0.060210768]),
        ("snr", 0.1, 1.0, [0.949709237, 0.481324136, 0.3131347, 0.137042969, 0.103691295]),
        ("snr", 0.03, 2.0, [0.945797741, 0.440982729, 0.259711862, 0.069924079, 0.033978388]),
    ],
)
def test_huber_borders(kind, c, scale, expected):
    options = LossOptions(huber_schedule=kind, huber_c=c, huber_scale=scale)
    np.testing.assert_allclose(process().huber_deltas(torch.tensor(TIMESTEPS), options), expected, rtol=3e-5)


def numpy_error(d: np.ndarray, loss_type: str, c: np.ndarray) -> np.ndarray:
    return {
        "l2": d**2,
        "l1": np.abs(d),
        "huber": 2 * c * (np.sqrt(d**2 + c**2) - c),
        "smooth_l1": 2 * (np.sqrt(d**2 + c**2) - c),
    }[loss_type]


def numpy_borders(t: np.ndarray, kind: str, c: float, scale: float) -> np.ndarray:
    by_kind = {
        "constant": np.full(len(t), c * scale),
        "exponential": np.exp(np.log(c) * t / 1000) * scale,
        "snr": (1 - c) / (1 + np.sqrt((1 - ALPHAS[t]) / ALPHAS[t])) ** 2 + c,
    }
    return by_kind[kind][:, None, None, None]


KINDS = [("l2", "snr"), ("l1", "snr"), *itertools.product(("huber", "smooth_l1"), ("constant", "exponential", "snr"))]
WEIGHTS = {
    "none": ("epsilon", {}, lambda s: 1.0),
    "min snr": ("epsilon", {"min_snr_gamma": 5.0}, lambda s: np.minimum(s, 5) / s),
    "min snr v": ("v_prediction", {"min_snr_gamma": 5.0}, lambda s: np.minimum(s, 5) / (s + 1)),
    "scale v": ("v_prediction", {"scale_v_pred_loss_like_noise_pred": True}, lambda s: s / (s + 1)),
    "v like": ("epsilon", {"v_pred_like_loss": 0.1}, lambda s: 1 + 0.1 * (s + 1) / s),
    "debiased": ("epsilon", {"debiased_estimation_loss": True}, lambda s: 1 / np.sqrt(s)),
    "debiased v": ("v_prediction", {"debiased_estimation_loss": True}, lambda s: 1 / (s + 1)),
    "all of noise": (
        "epsilon",
        {"min_snr_gamma": 2.0, "v_pred_like_loss": 0.5, "debiased_estimation_loss": True},
        lambda s: np.minimum(s, 2) / s * (1 + 0.5 * (s + 1) / s) / np.sqrt(s),
    ),
    "all of v": (
        "v_prediction",
        {"min_snr_gamma": 2.0, "scale_v_pred_loss_like_noise_pred": True, "debiased_estimation_loss": True},
        lambda s: np.minimum(s, 2) / (s + 1) * s / (s + 1) / (s + 1),
    ),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("loss_type", "kind"), KINDS)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_value_and_gradient_of_every_measure_schedule_and_weight(weight, loss_type, kind, masked):
    """The value against NumPy in float64, the gradient against differences of the value."""
    prediction_type, more, weight_of = WEIGHTS[weight]
    t, priors = np.array([3, 100, 500, 900]), np.array([1.0, 0.5, 1.0, 0.0])
    p, y = draws(2, 4, 4, 3, 5), draws(3, 4, 4, 3, 5)
    masks = np.random.default_rng(4).random((4, 1, 3, 5)) if masked else None
    options = LossOptions(loss_type=loss_type, huber_schedule=kind, huber_c=0.05, huber_scale=1.5, **more)

    errors = numpy_error(p - y, loss_type, numpy_borders(t, kind, 0.05, 1.5)) * (1 if masks is None else masks)
    expected = np.mean(errors.mean(axis=(1, 2, 3)) * priors * weight_of(snr_at(t)))

    def value(prediction, dtype):
        return loss_of(
            prediction, y, options, t=t, weights=priors, masks=masks, prediction_type=prediction_type, dtype=dtype
        )

    assert value(p, torch.float32).item() == pytest.approx(expected, rel=5e-5)
    prediction = torch.tensor(p, requires_grad=True)
    loss = value(prediction, torch.float64)
    assert loss.dtype == torch.float64 and loss.item() == pytest.approx(expected, rel=1e-9)
    loss.backward()
    scale = prediction.grad.abs().max().item()
    for index in [(0, 1, 2, 3), (1, 0, 0, 0), (2, 3, 1, 4), (2, 0, 2, 2), (3, 1, 1, 1)]:
        step = np.zeros_like(p)
        step[index] = 1e-5
        slope = (value(p + step, torch.float64) - value(p - step, torch.float64)).item() / 2e-5
        assert prediction.grad[index].item() == pytest.approx(slope, rel=1e-5, abs=1e-6 * scale)
    assert torch.all(prediction.grad[3] == 0)  # its weight is 0


def test_small_errors_keep_their_digits_in_float32():
    # sqrt(d^2 + c^2) - c of such errors is lost in float32 when it is computed so
    d = np.full((1, 4, 2, 2), 1e-4)
    c = numpy_borders(np.array([5]), "snr", 0.1, 1.0)
    expected = numpy_error(d, "huber", c).mean()
    found = loss_of(d, 0 * d, LossOptions(loss_type="huber"), t=[5])
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_half_precision_predictions_are_measured_in_float32():
    prediction, target = torch.tensor(draws(8, 1, 4, 8, 8)).bfloat16(), torch.zeros(1, 4, 8, 8)
    loss = weighted_loss(
        prediction,
        target,
        loss_weights=torch.ones(1),
        timesteps=torch.tensor([500]),
        process=process(),
        options=LossOptions(),
    )
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx((prediction.double().numpy() ** 2).mean(), rel=1e-6)
