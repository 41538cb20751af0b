"""If these fail, what ends a run before its end takes with it what was learned since the last save."""

import itertools
import logging
import multiprocessing
import os
import random
import signal
import sys
import weakref
from collections import Counter

import pytest
from safetensors.torch import load_file

from library.cli.errors import Stopped, UserError
from library.training import model_setup, run
from library.training.checkpoints.resuming import newest_state
from library.training.checkpoints.states import read_state
from library.training.loop.trainer import Trainer
from networks import lora
from tests.end_to_end.runs import assert_same, copy_images, train
from tests.end_to_end.whole_models import train_whole

STEPS = 6
OPTIONS = {"network_dim": 2, "max_train_steps": STEPS, "logging_dir": None, "ema": True, "ema_decay": 0.5}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The files of a run that saves after every step: what weights and states after each are."""
    folder = tmp_path_factory.mktemp("whole")
    train(copy_images(folder / "data"), folder, save_every_n_steps=1, save_state=True, **OPTIONS)
    return folder


def assert_saved(folder, whole, suffix):
    """Weights for use and state are those of the whole run."""
    for name in (f"run{suffix}.safetensors", f"run{suffix}-state/weights.safetensors"):
        assert_same(load_file(folder / name), load_file(whole / name))


def lose_image(data):
    for path in data.rglob("*.png"):
        path.unlink()


def break_image(data):
    for path in data.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:100])


def lose_worker(data):
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGKILL)


def fail(data):
    raise ConnectionError("the tracker does not answer")


def at_step(monkeypatch, step, event):
    """Networks that are made from here on call `event` at the begin of a step, counted from 1."""
    create = lora.create_network

    def create_network(*args, **kwargs):
        network, steps = create(*args, **kwargs), itertools.count(1)
        network.on_step_start = lambda: event() if next(steps) == step else None
        return network

    monkeypatch.setattr(lora, "create_network", create_network)


@pytest.mark.parametrize(
    ("event", "raised", "said", "options"),
    [
        (lose_image, UserError, "cannot be read", {}),
        (break_image, UserError, "cannot be read", {}),
        (fail, ConnectionError, "the tracker does not answer", {}),
        (lose_worker, UserError, "a process that loads images has died", {"max_data_loader_n_workers": 2}),
    ],
)
def test_the_last_whole_step_is_saved_first(
    data_dir, whole, tmp_path, monkeypatch, caplog, event, raised, said, options
):
    """The event comes at the begin of the fourth of the five steps of an epoch.

    Where there are workers, at that of the second: one more batch has been received, and more may have been loaded.
    """
    at = 2 if options else 4
    at_step(monkeypatch, at, lambda: event(data_dir))
    with pytest.raises(raised, match=said):
        train(data_dir, tmp_path, **OPTIONS, **options)
    (state,) = tmp_path.glob("*-state")
    step = int(state.name[8:16])
    assert step == at - 1 or (options and step >= at)
    assert_saved(tmp_path, whole, f"-step{step:08d}")
    assert f"the run ends after step {step}: " in caplog.text and f"--resume {state}" in caplog.text


@pytest.mark.skipif(sys.platform == "win32", reason="signals are other things there")
def test_what_is_due_at_the_end_of_an_epoch_is_done_when_a_run_stopped_there_goes_on(
    data_dir, whole, tmp_path, monkeypatch
):
    """The signal comes in the fifth and last step of the first epoch."""
    options = {**OPTIONS, "save_every_n_epochs": 1}
    with monkeypatch.context() as patch:
        at_step(patch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stopped) as stopped:
            train(data_dir, tmp_path, **options)
    assert_saved(tmp_path, whole, "-step00000005")
    train(data_dir, tmp_path, **options, resume=stopped.value.state)
    epoch, step = tmp_path / "run-000001.safetensors", whole / "run-step00000005.safetensors"
    assert_same(load_file(epoch), load_file(step))
    assert_same(load_file(tmp_path / "run.safetensors"), load_file(whole / "run.safetensors"))


def test_an_interrupt_at_any_line_loses_no_whole_step(data_dir, whole, tmp_path, monkeypatch):
    """It is thrown at lines of the loop and of what it calls; then the run goes on from its newest state."""
    captured = []
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run", lambda trainer, start: captured.append((trainer, start)))
        with pytest.raises(FileNotFoundError):  # nothing was trained
            train(data_dir, tmp_path, **OPTIONS)
    ((trainer, position),) = captured
    trainer._outputs.save_state_alone(position)  # the untrained weights
    rng, seen = random.Random(1), Counter()
    for attempt in itertools.count():
        in_update = attempt % 3 == 2  # few lines, else seldom met
        sys.settrace(Thrower(rng.randrange(1, 9) if in_update else 30 + 29 * attempt, within="_apply" * in_update))
        try:
            trainer.run(position)
            break
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        step, newest = trainer._step.whole_step, newest_state(str(tmp_path), "run")
        seen["in an update" if step is None else "before a step" if step == position.global_step else "after it"] += 1
        assert step in (None, newest.position.global_step)
        position = newest.position
        if step:
            assert_saved(tmp_path, whole, "" if step == STEPS else f"-step{step:08d}")
        weights, training = read_state(newest.folder)
        trainer._method.load_state_dict(weights)
        trainer._step.load(training, newest.folder)
        trainer._step.strategy.zero_grad()
    assert len(seen) == 3 and sum(seen.values()) > 3, seen


def test_what_is_listed_is_there_and_commands_can_be_pasted(data_dir, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    output = tmp_path / "my runs"
    options = {"save_every_n_steps": 1, "save_last_n_steps": 1, "save_state_on_train_end": True}
    train(data_dir, output, **OPTIONS | options)
    said = caplog.text.split("Written:")[1]
    listed = {path.name for path in output.iterdir() if str(path) in said}
    assert listed == {path.name for path in output.iterdir()} and f"{output}/run-step00000001.safetensors" not in said
    assert f"--resume '{output / 'run-state'}'" in said


class Watched(dict):
    """A dict that can be watched going."""


def test_a_resumed_run_keeps_nothing_of_the_state_but_what_it_took_over(data_dir, whole, tmp_path, monkeypatch):
    states, alive = [], []

    def restore(*args):
        state = Watched(model_setup.restore_weights(*args))
        states.append(weakref.ref(state))
        return state

    monkeypatch.setattr(run, "restore_weights", restore)
    monkeypatch.setattr(Trainer, "run", lambda trainer, start: alive.extend(each() for each in states))
    with pytest.raises(FileNotFoundError):  # nothing was trained
        train(data_dir, tmp_path, resume=whole / "run-step00000003-state", **OPTIONS)
    assert alive == [None]


class Thrower:
    """A trace function that raises at a line of the training loop, the `after`-th that is run."""

    def __init__(self, after, within):
        self._left = after
        self._within = within  # the function, or any

    def __call__(self, frame, event, argument):
        code = frame.f_code
        is_loop = "/library/training/loop/" in code.co_filename
        return self._line if is_loop and self._within in (code.co_name, "") else None

    def _line(self, frame, event, argument):
        self._left -= event == "line"
        if self._left == 0:
            self._left -= 1
            raise KeyboardInterrupt
        return self._line


def test_a_save_of_a_whole_model_that_fails_ends_nothing(data_dir, tmp_path, caplog):
    """What is in the way of the save after the first step is the user's own."""
    (tmp_path / "run-step00000001.safetensors").mkdir()
    (tmp_path / "run-step00000001.safetensors" / "notes.txt").touch()
    options = {"max_train_steps": 2, "save_every_n_steps": 1, "overwrite": True, "save_model_as": "safetensors"}
    with pytest.raises(UserError, match=r"1 of the run's files is missing: .*run-step00000001.safetensors"):
        train_whole("train_db", data_dir, tmp_path, logging_dir=None, **options)
    assert "run-step00000001.safetensors is a folder; check --output_dir" in caplog.text
    assert load_file(tmp_path / "run.safetensors")
