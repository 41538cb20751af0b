"""If these fail, one bad step ruins the weights, or a user cannot tell which images it was."""

import math
import re

import pytest
import torch
from safetensors.torch import load_file

from library.cli.errors import UserError
from library.training.checkpoints.states import read_state
from tests.end_to_end.runs import arguments, assert_same, copy_images, logged, run_command, train
from tests.end_to_end.whole_models import train_whole

EVERY_STEP = {"save_every_n_steps": 1, "save_state": True, "train_batch_size": 1, "weighted_captions": True}


def spoil(data, names):
    """The weight of a word becomes infinite in 32 bits, and with it what the text encoder says."""
    for name in names:
        (path,) = data.rglob(f"{name}.txt")
        path.write_text(f"a (fox:{10**39})", encoding="utf-8")


def state_of(folder, step):
    weights, training = read_state(str(folder / f"run-step{step:08d}-state"))
    return weights, training["optimizer"]["state"]


def test_a_bad_step_is_named_and_changes_nothing(data_dir, tmp_path, caplog):
    spoil(data_dir, ["fox_02"])
    train(data_dir, tmp_path, **EVERY_STEP, max_train_epochs=1, ema=True, ema_decay=0.5)
    lines = [record.getMessage() for record in caplog.records if "not applied" in record.getMessage()]
    assert len(lines) == 2  # it is used twice an epoch
    assert all("the loss is not finite" in line and "fox_02.png" in line and "fox_01" not in line for line in lines)
    bad = [int(re.search(r"step (\d+)", line)[1]) for line in lines]
    assert [step for step, _ in logged(tmp_path)] == [step for step in range(1, 11) if step not in bad]
    assert all(math.isfinite(value) for _, value in logged(tmp_path, "loss/average"))
    assert len(logged(tmp_path, "lr/unet")) == 8
    for step in range(2, 11):
        (weights, moments), (before, moments_before) = state_of(tmp_path, step), state_of(tmp_path, step - 1)
        files = [load_file(tmp_path / f"run-step{each:08d}.safetensors") for each in (step, step - 1)]
        if step in bad:
            assert_same(weights, before)
            assert_same(*files)
            for key, entry in moments.items():
                assert_same(entry, moments_before[key])
        else:
            assert any(not torch.equal(weights[name], before[name]) for name in weights)
        assert all(tensor.isfinite().all() for tensor in weights.values())


def test_only_the_batches_with_a_bad_loss_are_named(data_dir, tmp_path, caplog):
    """Of the five batches of a step, one."""
    spoil(data_dir, ["fox_03"])
    train(data_dir, tmp_path, gradient_accumulation_steps=5, weighted_captions=True, max_train_steps=1)
    (line,) = [record.getMessage() for record in caplog.records if "not applied" in record.getMessage()]
    assert line.count(".png") <= 2 and "fox_03.png" in line


def test_gradients_that_overflow_are_found_behind_a_loss_that_does_not(data_dir, tmp_path, caplog):
    """A weight of regularisation images at the end of what 32 bits hold."""
    reg = copy_images(tmp_path / "reg", 2)
    weights = train(
        data_dir, tmp_path / "out", reg_data_dir=reg, prior_loss_weight=1e38, train_batch_size=1, max_train_steps=9
    )
    lines = [record.getMessage() for record in caplog.records if "not applied" in record.getMessage()]
    assert lines and all("the gradients are not finite" in line for line in lines)
    assert all(str(reg) in line for line in lines)
    assert 0 < len(logged(tmp_path / "out")) == 9 - len(lines)
    assert all(tensor.isfinite().all() for tensor in weights.values())


@pytest.mark.parametrize(("limit", "given"), [(10, {}), (3, {"max_nonfinite_steps": 3})])
def test_too_many_in_a_row_end_the_run_with_a_state_to_go_on_from(data_dir, tmp_path, limit, given):
    spoil(data_dir, [f"fox_{number:02d}" for number in range(1, 6)])
    out = tmp_path / "out"
    options = {"weighted_captions": True, "train_batch_size": 1, "max_train_steps": 20}
    with pytest.raises(UserError) as caught:
        train(data_dir, out, **options, **given)
    state = out / f"run-step{limit:08d}-state"
    assert f"{limit} steps in a row could not be applied" in str(caught.value)
    assert f"--resume {state}" in str(caught.value)
    for path in data_dir.rglob("*.txt"):
        path.write_text("a fox", encoding="utf-8")
    train(data_dir, out, **options, **given, resume=state)
    assert [step for step, _ in logged(out)] == list(range(limit + 1, 21))


def test_weights_that_are_lost_are_said_to_be(data_dir, tmp_path):
    """A rate beyond all reason: the first step is finite, what it leaves is not."""
    argv = arguments(
        data_dir, tmp_path, optimizer_type="SGD", optimizer_args="weight_decay=1000", learning_rate=1e38,
        max_nonfinite_steps=2,
    )  # fmt: skip
    done = run_command(argv)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "The weights themselves are not finite any more" in done.stderr
    assert "lower --learning_rate" in done.stderr


def test_a_row_ends_with_a_step_that_is_applied(data_dir, tmp_path, caplog):
    """One bad image in five is never ten in a row."""
    spoil(data_dir, ["fox_01"])
    train(data_dir, tmp_path, weighted_captions=True, train_batch_size=1, max_train_epochs=3, max_nonfinite_steps=3)
    assert len([record for record in caplog.records if "not applied" in record.getMessage()]) == 6


def test_a_backward_pass_that_steps_names_and_counts_them_too(data_dir, tmp_path, caplog):
    """Each weight is looked at by itself there; the step is one all the same."""
    reg = copy_images(tmp_path / "reg", 2)
    with pytest.raises(UserError, match="1 step in a row could not be applied; the last was step"):
        train_whole(
            "train_db", data_dir, tmp_path / "out", fused_backward_pass=True, reg_data_dir=reg, prior_loss_weight=1e38,
            train_batch_size=1, max_train_steps=9, max_nonfinite_steps=1,
        )  # fmt: skip
    (line,) = [record.getMessage() for record in caplog.records if "not finite" in record.getMessage()]
    assert "the gradients are not finite" in line and str(reg) in line
    assert re.search(r"the step is applied with \d+ gradients? as zeros", line)
    weights, _ = read_state(str(next((tmp_path / "out").glob("run-step*-state"))))
    assert all(tensor.isfinite().all() for tensor in weights.values())
