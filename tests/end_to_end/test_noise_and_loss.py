"""If these fail, options of noise and loss do not reach the training, or weigh other timesteps than those that ran."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from library.cli.errors import UserError
from library.data.randomness import derive_seed
from tests.end_to_end.runs import BASE, copy_images, logged, train

SEED, GAMMA, STEPS = 7, 5.0, 60
ALPHAS = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
UNTRAINED = {"learning_rate": 0, "network_train_unet_only": True, "cache_latents": True, "seed": SEED}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return copy_images(tmp_path_factory.mktemp("data"), 5)


def losses(data: Path, output: Path, **options) -> np.ndarray:
    """The logged loss of every step of a run that changes nothing."""
    train(data, output, **UNTRAINED, **options)
    return np.array([value for _, value in logged(output)])


def test_min_snr_weighs_the_loss_of_every_step_by_its_timestep(data, tmp_path):
    """Two runs that draw the same and learn nothing: the losses of one are those of the other, times the weights.

    The weights are computed here from the schedule's definition, once at the timesteps that the key of each step gives,
    and once as an average over all timesteps, which knows nothing of keys.
    """
    options = {"train_batch_size": 1, "max_train_steps": STEPS}
    plain = losses(data, tmp_path / "plain", **options)
    weighted = losses(data, tmp_path / "weighted", **options, min_snr_gamma=GAMMA)
    assert len(plain) == len(weighted) == STEPS

    steps_per_epoch = 10  # 5 images, 2 repeats
    timesteps = []
    for step in range(STEPS):
        key = derive_seed("noise", SEED, *divmod(step, steps_per_epoch))
        timesteps.append(int(torch.randint(0, 1000, (1,), generator=torch.Generator().manual_seed(key))))
    snr = ALPHAS / (1 - ALPHAS)
    weights = np.minimum(snr, GAMMA) / snr
    assert (weights[timesteps] < 0.99).sum() > 5  # there was something to weigh
    np.testing.assert_allclose(weighted / plain, weights[timesteps], rtol=1e-4)
    assert weighted.mean() == pytest.approx((plain * weights[timesteps]).mean(), rel=1e-5)
    # timesteps are uniform, so that the mean ratio is the mean of all weights, to the deviation of that many draws
    assert (weighted / plain).mean() == pytest.approx(weights.mean(), abs=4 * weights.std() / math.sqrt(STEPS))


OPTIONS = {
    "noise_offset": {"noise_offset": 0.3},
    "random offset": {"noise_offset": 0.3, "noise_offset_random_strength": True},
    "adaptive scale alone": {"adaptive_noise_scale": 0.5, "noise_offset": 0},
    "pyramid": {"multires_noise_iterations": 6},
    "pyramid, discount": {"multires_noise_iterations": 6, "multires_noise_discount": 0.8},
    "perturbation": {"ip_noise_gamma": 0.2},
    "random perturbation": {"ip_noise_gamma": 0.2, "ip_noise_gamma_random_strength": True},
    "early timesteps": {"max_timestep": 100},
    "late timesteps": {"min_timestep": 900},
    "zero terminal": {"zero_terminal_snr": True},
    "l1": {"loss_type": "l1"},
    "huber": {"loss_type": "huber"},
    "huber constant": {"loss_type": "huber", "huber_schedule": "constant"},
    "huber constant, wider": {"loss_type": "huber", "huber_schedule": "constant", "huber_scale": 3.0},
    "huber wider": {"loss_type": "huber", "huber_c": 0.5},
    "smooth l1": {"loss_type": "smooth_l1"},
    "smooth l1 exponential": {"loss_type": "smooth_l1", "huber_schedule": "exponential"},
    "min snr": {"min_snr_gamma": 1.0},
    "like v": {"v_pred_like_loss": 0.1},
    "debiased": {"debiased_estimation_loss": True},
}


def test_every_option_changes_the_loss_in_its_own_way(data, tmp_path):
    found = {"none": losses(data, tmp_path / "none", max_train_steps=2)}
    for name, options in OPTIONS.items():
        found[name] = losses(data, tmp_path / name, max_train_steps=2, **options)
    assert all(np.isfinite(each).all() for each in found.values())
    assert len({tuple(each) for each in found.values()}) == len(found)


V_OPTIONS = {
    "zero_terminal_snr": True,
    "min_snr_gamma": 5.0,
    "scale_v_pred_loss_like_noise_pred": True,
    "debiased_estimation_loss": True,
    "loss_type": "huber",
    "huber_schedule": "exponential",
    "huber_c": 0.2,
    "huber_scale": 1.5,
    "noise_offset": 0.05,
    "noise_offset_random_strength": True,
    "adaptive_noise_scale": 0.1,
    "multires_noise_iterations": 4,
    "multires_noise_discount": 0.4,
    "ip_noise_gamma": 0.1,
    "ip_noise_gamma_random_strength": True,
    "min_timestep": 500,
    "max_timestep": 1000,
}
METADATA = {
    "ss_zero_terminal_snr": "True",
    "ss_min_snr_gamma": "5.0",
    "ss_debiased_estimation": "True",
    "ss_loss_type": "huber",
    "ss_huber_schedule": "exponential",
    "ss_huber_c": "0.2",
    "ss_huber_scale": "1.5",
    "ss_noise_offset": "0.05",
    "ss_noise_offset_random_strength": "True",
    "ss_adaptive_noise_scale": "0.1",
    "ss_multires_noise_iterations": "4",
    "ss_multires_noise_discount": "0.4",
    "ss_ip_noise_gamma": "0.1",
    "ss_ip_noise_gamma_random_strength": "True",
    "ss_prior_loss_weight": "1.0",
    "modelspec.timestep_range": "500,999",
    "modelspec.prediction_type": "v",
}
WITHOUT = {
    "ss_zero_terminal_snr": "False",
    "ss_min_snr_gamma": "None",
    "ss_debiased_estimation": "False",
    "ss_loss_type": "l2",
    "ss_huber_schedule": "snr",
    "ss_huber_c": "0.1",
    "ss_huber_scale": "1.0",
    "ss_noise_offset": "None",
    "ss_noise_offset_random_strength": "False",
    "ss_adaptive_noise_scale": "None",
    "ss_multires_noise_iterations": "None",
    "ss_multires_noise_discount": "0.3",
    "ss_ip_noise_gamma": "None",
    "ss_ip_noise_gamma_random_strength": "False",
    "ss_prior_loss_weight": "1.0",
    "modelspec.timestep_range": None,
    "modelspec.prediction_type": "v",
}


def metadata(output: Path) -> dict[str, str]:
    with safe_open(output / "run.safetensors", "pt") as file:
        return file.metadata()


@pytest.fixture(scope="module")
def base_of_v(tmp_path_factory) -> Path:
    """The quickstart's model, declared to predict v."""
    base = shutil.copytree(BASE, tmp_path_factory.mktemp("v") / "base")
    config = base / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "prediction_type": "v_prediction"}))
    return base


def test_a_model_of_v_trains_with_everything_at_once(data, base_of_v, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a shs fox --w 64 --h 64 --s 3 --d 1\n")
    common = {
        "pretrained_model_name_or_path": base_of_v,
        "network_train_unet_only": True,
        "max_train_steps": 3,
        "sample_prompts": prompts,
        "sample_every_n_steps": 3,
    }
    plain = train(data, tmp_path / "plain", **common)
    found = train(data, tmp_path / "all", **common, **V_OPTIONS)
    assert all(torch.isfinite(tensor).all() for tensor in found.values())
    assert all(math.isfinite(value) and value > 0 for _, value in logged(tmp_path / "all"))
    assert any(not torch.equal(found[name], plain[name]) for name in found)
    for output, expected in (("all", METADATA), ("plain", WITHOUT)):
        saved = metadata(tmp_path / output)
        assert {key: saved.get(key) for key in expected} == expected
    (drawn,), (usual,) = ((tmp_path / output / "sample").glob("*_0?_*.png") for output in ("all", "plain"))
    assert drawn.read_bytes() != usual.read_bytes()


REFUSED = {
    "--scale_v_pred_loss_like_noise_pred is for v-prediction models": {"scale_v_pred_loss_like_noise_pred": True},
    "--debiased_estimation_loss: the weight is infinite": {"debiased_estimation_loss": True, "zero_terminal_snr": True},
    "--max_timestep 1200": {"max_timestep": 1200},
    "--v_pred_like_loss is for models that predict noise": {"v_pred_like_loss": 0.1, "v_parameterization": True},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_the_model_does_not_allow_ends_the_run_before_it_begins(data, tmp_path, message):
    with pytest.raises(UserError, match=message):
        train(data, tmp_path / "out", **REFUSED[message])
    assert not list(tmp_path.rglob("*.safetensors"))


def test_masked_loss_is_accepted_and_says_when_it_has_no_masks(data, tmp_path, caplog):
    plain = losses(data, tmp_path / "plain", max_train_steps=1)
    assert "--masked_loss" not in caplog.text
    without = losses(data, tmp_path / "without", max_train_steps=1, masked_loss=True)
    assert "--masked_loss does nothing" in caplog.text and np.array_equal(without, plain)
    caplog.clear()
    opaque = losses(data, tmp_path / "opaque", max_train_steps=1, masked_loss=True, alpha_mask=True)
    assert "--masked_loss" not in caplog.text and np.array_equal(opaque, plain)


def test_options_without_effect_are_said_before_training(data, tmp_path, caplog):
    losses(data, tmp_path / "out", max_train_steps=1, huber_c=0.3, multires_noise_discount=0.5)
    assert "--huber_c does nothing" in caplog.text and "--multires_noise_discount does nothing" in caplog.text
