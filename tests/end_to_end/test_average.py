"""If these fail, samples and files are not those of the average that --ema keeps, or a resumed run loses it."""

import numpy as np
import pytest
from safetensors.torch import load_file

from library.cli.errors import UserError
from library.training.checkpoints.states import read_state
from tests.end_to_end.runs import assert_same, copy_images, logged, train

EMA = {"ema": True, "ema_decay": 0.25, "ema_start_step": 2}
EVERY_STEP = {"save_every_n_steps": 1, "max_train_steps": 6, "validation_split": 0.4, "validate_every_n_steps": 1}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return copy_images(tmp_path_factory.mktemp("images") / "data")


@pytest.fixture(scope="module")
def runs(images, tmp_path_factory):
    """The same run without and with an average: their folders."""
    plain, average = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("average")
    train(images, plain, **EVERY_STEP, save_state=True)
    train(images, average, **EVERY_STEP, **EMA, save_state=True)
    return plain, average


def saved(folder, step):
    return load_file(folder / f"run-step{step:08d}.safetensors")


def test_saved_files_are_the_average_of_the_steps_so_far(runs):
    """From step 2 on; the decays are min(0.25, 2/11), then 0.25."""
    plain, average = ([saved(folder, step) for step in range(1, 7)] for folder in runs)
    for name in plain[0]:
        expected = plain[0][name].double().numpy()
        for decay, weights, found in zip((0, 0, 2 / 11, 0.25, 0.25, 0.25), plain, average, strict=True):
            expected = decay * expected + (1 - decay) * weights[name].double().numpy()
            np.testing.assert_allclose(found[name].numpy(), expected, rtol=1e-5, atol=1e-9)


def test_training_itself_is_not_touched(runs):
    plain, average = runs
    assert logged(plain) == logged(average)
    for name in ("run-step00000004-state", "run-state"):
        assert_same(read_state(str(plain / name))[0], read_state(str(average / name))[0])


def test_validation_is_that_of_the_saved_file(images, runs, tmp_path):
    _, average = runs
    weights = average / "run-step00000005.safetensors"
    train(images, tmp_path, validation_split=0.4, network_weights=weights, max_train_steps=1)
    assert logged(tmp_path, "loss/validation")[0] == (0, logged(average, "loss/validation")[5][1])


@pytest.mark.parametrize("step", [1, 4])
def test_a_resumed_run_goes_on_with_the_average(images, runs, tmp_path, step):
    """Also from a state before the average began."""
    _, average = runs
    state = average / f"run-step{step:08d}-state"
    train(images, tmp_path, **EVERY_STEP, **EMA, save_state=True, resume=state)
    for name in ("run-step00000006.safetensors", "run.safetensors"):
        assert_same(load_file(average / name), load_file(tmp_path / name))
    then, now = (read_state(str(folder / "run-state"))[1]["average"] for folder in (average, tmp_path))
    assert then["num_updates"] == now["num_updates"] == 4
    assert all((left == right).all() for left, right in zip(then["averages"], now["averages"], strict=True))


def test_going_on_without_it_or_with_it_for_the_first_time_is_said(images, runs, tmp_path, caplog):
    plain, average = runs
    without = train(images, tmp_path / "a", **EVERY_STEP, resume=average / "run-step00000004-state")
    assert "the moving average (EMA) in the state is dropped" in caplog.text
    assert_same(without, load_file(plain / "run.safetensors"))
    train(images, tmp_path / "b", **EVERY_STEP, **EMA, resume=plain / "run-step00000004-state")
    assert "the state has no moving average (EMA); a new one starts here" in caplog.text
    assert_same(saved(tmp_path / "b", 5), saved(plain, 5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer_type": "AdamWScheduleFree"}, "--ema with --optimizer_type AdamWScheduleFree"),
        ({"ema_decay": 1.0}, "--ema_decay 1.0 must be below 1"),
    ],
)
def test_what_makes_no_average_is_refused(images, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        train(images, tmp_path, **{**EMA, **options})


@pytest.mark.parametrize(
    ("options", "warning"),
    [
        ({"ema_decay": 0.9}, "--ema_decay does nothing without --ema"),
        ({"ema_start_step": 3}, "--ema_start_step does nothing without --ema"),
        ({"ema": True, "ema_start_step": 2}, "--ema does nothing: it starts at step 2"),
        ({"validation_seed": 3}, "--validation_seed does nothing: no images are held out"),
        ({"ema": True, "ema_start_step": 1, "ema_decay": 0.9}, None),
    ],
)
def test_what_was_asked_for_and_does_nothing_is_said(images, tmp_path, caplog, options, warning):
    train(images, tmp_path, max_train_steps=1, **options)
    said = [record.getMessage() for record in caplog.records if "does nothing" in record.getMessage()]
    assert len(said) == bool(warning) and all(warning in line for line in said)
