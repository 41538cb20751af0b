"""If these fail, options that cannot do what they say train for hours without a warning."""

import pytest

from library.cli.errors import UserError
from library.cli.parser import parse_options
from library.diffusion.options import LossOptions, NoiseOptions
from library.diffusion.validation_rules import ScheduleShape, objective_findings


def parsed(*argv: str):
    return parse_options(argv, (NoiseOptions, LossOptions), program="x", description="x")


def test_flags_have_the_fields_names_and_defaults():
    options = parsed()
    noise, loss = options[NoiseOptions], options[LossOptions]
    assert (noise.noise_offset, noise.adaptive_noise_scale, noise.multires_noise_iterations) == (None, None, None)
    assert (noise.multires_noise_discount, noise.ip_noise_gamma, noise.zero_terminal_snr) == (0.3, None, False)
    assert (noise.min_timestep, noise.max_timestep) == (None, None)
    assert (loss.loss_type, loss.huber_schedule, loss.huber_c, loss.huber_scale) == ("l2", "snr", 0.1, 1.0)
    assert (loss.min_snr_gamma, loss.v_pred_like_loss, loss.prior_loss_weight) == (None, None, 1.0)
    argv = ["--adaptive_noise_scale", "-0.1", "--noise_offset=0.1", "--min_timestep", "500", "--max_timestep", "500"]
    given = parsed(*argv)
    assert given[NoiseOptions] == NoiseOptions(
        adaptive_noise_scale=-0.1, noise_offset=0.1, min_timestep=500, max_timestep=500
    )


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--min_timestep", "501", "--max_timestep", "500"], ["--min_timestep 501", "--max_timestep 500"]),
        (["--max_timestep", "-1"], ["--max_timestep -1"]),
        (["--loss_type", "l3"], ["--loss_type l3", "l2, l1, huber, smooth_l1"]),
        (["--huber_schedule", "cosine"], ["constant, exponential, snr"]),
        (["--huber_c", "0"], ["--huber_c 0"]),
        (
            ["--scale_v_pred_loss_like_noise_pred", "--v_pred_like_loss", "0.1"],
            ["--scale_v_pred_loss_like_noise_pred", "--v_pred_like_loss"],
        ),
    ],
)
def test_contradictions_are_found_when_options_are_read(argv, named):
    with pytest.raises(UserError) as caught:
        parsed(*argv)
    assert all(name in str(caught.value) for name in named)


WITHOUT_EFFECT = {
    "--noise_offset_random_strength": NoiseOptions(noise_offset_random_strength=True),
    "--adaptive_noise_scale -0.1": NoiseOptions(adaptive_noise_scale=-0.1, noise_offset=0.0),
    "--multires_noise_discount": NoiseOptions(multires_noise_discount=0.4),
    "--ip_noise_gamma_random_strength": NoiseOptions(ip_noise_gamma_random_strength=True),
    "--huber_c does nothing with --loss_type l2": LossOptions(huber_c=0.2),
    "--huber_schedule does nothing with --loss_type l1": LossOptions(huber_schedule="constant", loss_type="l1"),
    "--huber_scale does nothing with --huber_schedule snr": LossOptions(loss_type="huber", huber_scale=2.0),
}


@pytest.mark.parametrize("beginning", WITHOUT_EFFECT)
def test_options_without_effect_are_named(beginning):
    (line,) = WITHOUT_EFFECT[beginning].check()
    assert line.startswith(beginning)


def test_options_with_an_effect_are_not_named():
    noise = NoiseOptions(
        noise_offset=0.1,
        noise_offset_random_strength=True,
        adaptive_noise_scale=-0.1,
        multires_noise_iterations=6,
        multires_noise_discount=0.4,
        ip_noise_gamma=0.1,
        ip_noise_gamma_random_strength=True,
    )
    loss = LossOptions(loss_type="huber", huber_c=0.2, huber_schedule="constant", huber_scale=2.0)
    for options in (noise, loss, NoiseOptions(), LossOptions(), NoiseOptions(adaptive_noise_scale=0.1)):
        assert list(options.check()) == []


USUAL, RESCALED = ScheduleShape(1000, ends_in_noise=False), ScheduleShape(1000, ends_in_noise=True)
ZERO = {"zero_terminal_snr": True}
REFUSED = {
    "scaled like noise, noise": ({}, {"scale_v_pred_loss_like_noise_pred": True}, "epsilon", "--scale_v_pred_loss"),
    "like v, v": ({}, {"v_pred_like_loss": 0.1}, "v_prediction", "--v_pred_like_loss"),
    "debiased at zero SNR": (ZERO, {"debiased_estimation_loss": True}, "epsilon", "--debiased_estimation_loss"),
    "like v at zero SNR": (ZERO, {"v_pred_like_loss": 0.1}, "epsilon", "--v_pred_like_loss"),
    "too late a start": ({"min_timestep": 1000}, {}, "epsilon", "--min_timestep 1000"),
    "too late an end": ({"max_timestep": 1001}, {}, "epsilon", "--max_timestep 1001"),
}


def findings(noise, loss, prediction_type):
    options = NoiseOptions(**noise), LossOptions(**loss)
    shape = RESCALED if "zero_terminal_snr" in noise else USUAL
    return list(objective_findings(*options, prediction_type, shape))


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_model_does_not_allow_is_refused(name):
    noise, loss, prediction_type, named = REFUSED[name]
    errors = [each for each in findings(noise, loss, prediction_type) if isinstance(each, UserError)]
    assert [(named in error.message, bool(error.hint)) for error in errors] == [(True, True)]


def test_zero_terminal_snr_is_for_v_prediction_models():
    every_weight = {
        "min_snr_gamma": 5.0, "scale_v_pred_loss_like_noise_pred": True, "debiased_estimation_loss": True,
        "loss_type": "huber",
    }  # fmt: skip
    assert findings({**ZERO, "max_timestep": 1000}, every_weight, "v_prediction") == []
    assert findings({}, {"v_pred_like_loss": 0.1}, "epsilon") == []
    (warning,) = findings(ZERO, {"min_snr_gamma": 5.0}, "epsilon")
    assert "--zero_terminal_snr" in warning and "v-prediction" in warning
    (warning,) = objective_findings(NoiseOptions(), LossOptions(), "epsilon", RESCALED)  # the model's own scheduler
    assert "rescale_betas_zero_snr" in warning
