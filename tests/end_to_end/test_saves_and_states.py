"""If these fail, somebody loses work: files are written over, thrown away, or a run goes on from the wrong place."""

import json
import logging
import os
import shutil
import sys

import pytest
from safetensors.torch import load_file

from library.cli.errors import UserError
from library.training.checkpoints.states import read_state_header
from tests import programs
from tests.end_to_end.runs import arguments, assert_same, copy_images, logged, run_command, train

STATES = {"save_every_n_steps": 2, "save_state": True, "cache_latents": True}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return copy_images(tmp_path_factory.mktemp("images") / "data")


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """A run of 8 steps, 5 to the epoch, with states after 2, 4, 6 and 8."""
    out = tmp_path_factory.mktemp("whole")
    return out, train(images, out, **STATES)


@pytest.fixture
def copied(whole, tmp_path):
    """That run's folder, to do as one likes with."""
    shutil.copytree(whole[0], tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "logs")
    return tmp_path / "out"


def names(folder):
    return {path.name for path in folder.iterdir()} - {"logs"}


def test_a_new_run_does_not_write_over_an_earlier_one(images, copied):
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    done = run_command(arguments(images, copied, **STATES))
    assert done.returncode == 2
    assert "holds an earlier run's run-state, run-step00000002-state, run-step00000002.safetensors" in done.stderr
    assert "--overwrite" in done.stderr and "--resume auto" in done.stderr and "loaded base" not in done.stderr
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before
    train(images, copied, output_name="other", max_train_steps=1)  # nor does it stand in the way of another
    train(images, copied, overwrite=True, max_train_steps=1)
    assert load_file(copied / "run.safetensors").keys() == load_file(copied / "other.safetensors").keys()


def test_old_saves_go_when_newer_ones_are_there(images, tmp_path):
    options = {"save_state": True, "max_train_epochs": 5, "cache_latents": True, "train_batch_size": 4}
    train(images, tmp_path, save_every_n_epochs=1, save_last_n_epochs=2, save_last_n_epochs_state=1, **options)
    assert names(tmp_path) == {
        "run-000003.safetensors", "run-000004.safetensors", "run-000004-state", "run.safetensors", "run-state",
    }  # fmt: skip
    train(images, tmp_path / "steps", save_every_n_steps=3, save_last_n_steps=4, **options)
    assert names(tmp_path / "steps") == {
        *(f"run-step000000{step:02d}{kind}" for step in (12, 15) for kind in ("-state", ".safetensors")),
        "run.safetensors", "run-state",
    }  # fmt: skip


def test_a_state_at_the_end_alone(images, tmp_path):
    train(images, tmp_path, save_every_n_steps=1, save_state_on_train_end=True, max_train_steps=2)
    assert names(tmp_path) == {"run-step00000001.safetensors", "run-step00000002.safetensors", "run.safetensors",
                               "run-state"}  # fmt: skip
    train(images, tmp_path, resume=tmp_path / "run-state", max_train_steps=3)
    assert logged(tmp_path)[-1][0] == 3


def test_auto_takes_the_newest_state_or_begins(images, whole, copied, tmp_path):
    for name in ("run-state", "run.safetensors", "run-step00000008-state", "run-step00000008.safetensors"):
        path = copied / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    resumed = train(images, copied, resume="auto", **STATES)
    assert_same(resumed, whole[1])
    assert [step for step, _ in logged(copied)] == [7, 8]
    begun = train(images, tmp_path / "new", resume="auto", **STATES)
    assert_same(begun, whole[1])
    # before its first state is complete, a run may replace what it has left
    shutil.rmtree(tmp_path / "new")
    train(images, tmp_path / "new", max_train_steps=1)
    assert_same(train(images, tmp_path / "new", resume="auto", **STATES), whole[1])


def test_a_run_killed_before_its_last_save_is_brought_to_its_end(images, whole, copied, caplog):
    """Its newest state is that of the last step; the final files are not there yet."""
    (copied / "run.safetensors").unlink()
    shutil.rmtree(copied / "run-state")
    with caplog.at_level(logging.WARNING):
        assert_same(train(images, copied, resume="auto", **STATES), whole[1])
    assert "the run's 8 steps are done; the result is saved" in caplog.text
    assert read_state_header(copied / "run-state").global_step == 8 and logged(copied) == []


@pytest.mark.parametrize("damage", ["flip a bit", "cut short", "remove", "no header", "half a header", "empty header"])
def test_auto_passes_a_damaged_state_over_and_names_it(images, whole, copied, caplog, damage):
    newest, last = copied / "run-state", copied / "run-step00000008-state"
    shutil.rmtree(last)
    target = newest / ("state.json" if "header" in damage else "training.pt")
    content = bytearray(target.read_bytes())
    if damage == "flip a bit":
        content[len(content) // 2] ^= 4
        target.write_bytes(content)
    elif damage in ("remove", "no header"):
        target.unlink()
    else:
        target.write_bytes(b"" if "empty" in damage else content[: len(content) // 2])
    with pytest.raises(UserError, match=target.name):  # asked for by name, it is an error
        train(images, copied, resume=newest, **STATES, overwrite=True)
    with caplog.at_level(logging.WARNING):
        assert_same(train(images, copied, resume="auto", **STATES), whole[1])
    assert any(target.name in record.getMessage() for record in caplog.records)
    assert [step for step, _ in logged(copied)] == [7, 8]


def test_what_differs_is_listed_and_what_cannot_be_is_refused(images, whole, tmp_path, caplog):
    state = whole[0] / "run-step00000004-state"
    options = {**STATES, "resume": state}
    with caplog.at_level(logging.WARNING):
        changed = {"learning_rate": 5e-4, "noise_offset": 0.1, "max_train_steps": 9, "caption_extension": ".none"}
        train(images, tmp_path / "a", **options, **changed)
    said = [record.getMessage() for record in caplog.records if "--resume" in record.getMessage()]
    for line in (
        "--learning_rate was 0.001 in the saved run and is 0.0005 now; the saved value is kept",
        "--noise_offset was not given in the saved run and is 0.1 now",
        "--max_train_steps was 8 in the saved run and is 9 now",
        "images, captions or dataset settings differ from those of the saved run",
    ):
        assert any(line in each for each in said), line
    assert not any("output_dir" not in each and "--seed" in each for each in said)
    assert all(value == pytest.approx(1e-3) for _, value in logged(tmp_path / "a", "lr/unet"))
    for change, named in (
        ({"network_alpha": 2}, "--network_alpha 1.0, this one 2.0"),
        ({"network_args": "conv_dim=2"}, "--network_args"),
        ({"network_train_unet_only": True}, "--network_train_unet_only"),
        ({"mixed_precision": "bf16", "full_bf16": True}, "--full_bf16 off, this one on"),
        ({"optimizer_type": "Lion"}, "--optimizer_type torch.optim.AdamW, this one lion_pytorch.Lion"),
        ({"lr_scheduler_type": "StepLR", "lr_scheduler_args": "step_size=2"}, "--lr_scheduler"),
    ):
        done = run_command(arguments(images, tmp_path / "b", **{**options, **change}))
        assert done.returncode == 2 and named in done.stderr and "loaded base" not in done.stderr, done.stderr
    caplog.clear()
    with caplog.at_level(logging.WARNING):  # another spelling of the same is no difference
        train(images, tmp_path / "c", **options, optimizer_type="adamw", max_train_steps=8, logging_dir=None)
    assert not any("cannot" in record.getMessage() for record in caplog.records)


def test_parts_that_learn_are_those_of_the_state(images, whole, tmp_path):
    with pytest.raises(UserError, match="the optimizer state belongs to other parameters"):
        train(images, tmp_path, **STATES, unet_lr=0, resume=whole[0] / "run-step00000004-state")


def test_a_state_says_what_it_is_and_keeps_no_secret(whole):
    header = read_state_header(whole[0] / "run-step00000006-state")
    assert (header.format, header.epoch, header.step_in_epoch, header.global_step) == (2, 1, 1, 6)
    assert header.optimizer == "torch.optim.AdamW" and header.options["network_dim"] == 4
    assert {"torch", "accelerate", "python"} <= header.versions.keys()
    text = (whole[0] / "run-state" / "state.json").read_text()
    assert set(json.loads(text)["files"]) == {"weights.safetensors", "training.pt"}


def test_beginning_at_a_step_or_epoch_takes_its_place_in_the_plan(images, whole, tmp_path):
    """With the weights of step 2 and a fresh optimizer, the batches of step 3 on are the same ones."""
    weights = whole[0] / "run-step00000002.safetensors"
    options = {"network_weights": weights, "learning_rate": 0, "cache_latents": True}
    train(images, tmp_path / "step", **options, initial_step=2, skip_until_initial_step=True)
    rows = logged(tmp_path / "step")
    assert [step for step, _ in rows] == [3, 4, 5, 6, 7, 8]
    assert rows[0][1] == pytest.approx(logged(whole[0])[2][1], rel=1e-6)
    train(images, tmp_path / "epoch", **options, initial_epoch=2)
    assert logged(tmp_path / "epoch") == rows[3:]


LIMITED = """
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the system has no limit of this kind")
def test_a_save_that_fails_is_said_and_training_goes_on(images, whole, tmp_path):
    """Files may not be larger than the weights: states cannot be written."""
    limit = (whole[0] / "run.safetensors").stat().st_size + 200_000
    argv = arguments(images, tmp_path, **STATES, logging_dir=None)
    done = programs.run(["-c", LIMITED, limit, "train_network.py", *argv])
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-3000:]
    assert "run-step00000002-state cannot be written: " in done.stderr
    assert "5 of the run's files are missing" in done.stderr
    assert names(tmp_path) == {"run.safetensors", *(f"run-step0000000{step}.safetensors" for step in (2, 4, 6, 8))}
    assert_same(load_file(tmp_path / "run.safetensors"), whole[1])


def test_images_that_cannot_be_written_end_nothing(images, whole, tmp_path, caplog):
    """What is called "sample" is a file."""
    (tmp_path / "sample").touch()
    (tmp_path / "prompts.txt").write_text("a fox --w 64 --h 64 --s 1")
    drawn = train(images, tmp_path, **STATES, sample_prompts=tmp_path / "prompts.txt", sample_every_n_steps=4)
    assert_same(drawn, whole[1])
    assert len([each for each in caplog.records if "_000004_00_" in each.getMessage()]) == 1
    assert any("cannot be written" in record.getMessage() for record in caplog.records)


CURVES = """
import resource, signal, sys
from pathlib import Path
from library.training.monitoring.trackers import TensorBoardTracker, TrackerSettings
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
tracker = TensorBoardTracker(TrackerSettings(Path(sys.argv[1]), ""))
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
for step in range(3000):
    tracker.scalars({"loss": 1.0, "another": 2.0}, step)
    if step % 100 == 0:
        tracker._writer and tracker._writer.flush()
tracker.close()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the system has no limit of this kind")
def test_curves_that_cannot_be_written_end_nothing(tmp_path):
    done = programs.run(["-c", CURVES, tmp_path])
    assert done.returncode == 0 and done.stderr.count("no more curves are written") == 1, done.stderr[-2000:]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions work otherwise")
def test_a_folder_that_vanishes_is_made_again(images, whole, tmp_path):
    out = tmp_path / "out"
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox --w 64 --h 64 --s 1")
    train(images, out, **{**STATES, "save_every_n_steps": 4}, max_train_steps=4)
    shutil.rmtree(out)
    assert_same(train(images, out, **STATES), whole[1])
