"""Options that do nothing, or train nothing, are said before a run of hours shows it."""

from __future__ import annotations

import pytest

import train_db
import train_network
from library.training.script import check_command
from tests.end_to_end.runs import arguments, copy_images


def warnings(tmp_path, caplog, script=train_network.SCRIPT, **options):
    caplog.clear()
    data = tmp_path / "data"
    if not data.exists():
        copy_images(data, 1)
    check_command(script, arguments(data, tmp_path / "out", **options))
    return [record.message for record in caplog.records if record.levelname == "WARNING"]


USELESS = [
    ({"log_prefix": "x", "logging_dir": None}, "--log_prefix without --logging_dir: no curves are written"),
    ({"prior_loss_weight": 0.5}, "--prior_loss_weight 0.5 does nothing"),
    ({"learning_rate": None}, "--learning_rate is not given, and 2e-06 trains hardly anything here: about 0.0001"),
    ({"save_last_n_steps": 100}, "--save_last_n_steps without --save_every_n_steps"),
    (
        {"save_last_n_epochs": 2, "save_last_n_epochs_state": 1, "save_every_n_steps": 5},
        "--save_last_n_epochs and --save_last_n_epochs_state without --save_every_n_epochs",
    ),
    ({"masked_loss": True}, "--masked_loss does nothing"),
    ({"validation_seed": 3}, "--validation_seed does nothing"),
]


@pytest.mark.parametrize(("options", "said"), USELESS)
def test_what_does_nothing_is_one_warning(options, said, tmp_path, caplog):
    (warning,) = warnings(tmp_path, caplog, **options)
    assert warning.startswith(said)


def test_prompts_that_are_never_drawn_are_named_and_a_missing_file_too(tmp_path, caplog):
    prompts = tmp_path / "prompts.txt"
    (warning,) = warnings(tmp_path, caplog, sample_prompts=prompts)
    assert warning == f"no sample images are generated: --sample_prompts {prompts} does not exist"
    prompts.write_text("a cat")
    (warning,) = warnings(tmp_path, caplog, sample_prompts=prompts)
    assert "does nothing" in warning and "--sample_every_n_epochs" in warning
    assert warnings(tmp_path, caplog, sample_prompts=prompts, sample_every_n_epochs=1) == []


@pytest.mark.parametrize(
    ("script", "options", "named"),
    [
        (train_network.SCRIPT, {"learning_rate": 0}, "--learning_rate 0: nothing is trained"),
        (train_network.SCRIPT, {"unet_lr": 0, "text_encoder_lr": 0}, "--unet_lr 0 and --text_encoder_lr 0: nothing"),
        (train_network.SCRIPT, {"unet_lr": 0, "network_train_unet_only": True}, "--unet_lr 0: nothing"),
        (train_db.SCRIPT, {"learning_rate": 0}, "--learning_rate 0: nothing is trained"),
    ],
)
def test_a_run_that_trains_nothing_is_warned_of(script, options, named, tmp_path, caplog):
    (warning,) = warnings(tmp_path, caplog, script, **options)
    assert warning.startswith(named)
    assert warnings(tmp_path, caplog, train_db.SCRIPT, learning_rate=0, learning_rate_te=1e-6) == []
    assert warnings(tmp_path, caplog, learning_rate=0, unet_lr=1e-4) == []
    own_rate = {"optimizer_type": "AdaFactor", "learning_rate": 0}
    assert warnings(tmp_path, caplog, **own_rate) == []
