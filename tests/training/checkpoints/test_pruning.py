"""If these fail, a run removes saves that its user wanted to keep, or fills the disk."""

import os
import time

import pytest

from library.training.checkpoints.pruning import Retention, clear_up
from library.training.checkpoints.saved_names import Saved

# what other trainers' users know: (epoch, every, keep) -> the newest epoch that is let go; None for nothing
EPOCHS = [
    ((1, 1, 2), None), ((2, 1, 2), 0), ((3, 1, 2), 1), ((4, 2, 2), 0), ((6, 2, 2), 2), ((8, 2, 2), 4), ((3, 3, 1), 0),
    ((6, 3, 1), 3), ((12, 3, 1), 9), ((12, 1, 2), 10), ((5, 1, None), None),
]  # fmt: skip
STEPS = [
    ((20, 10, 20), None), ((30, 10, 20), 0), ((40, 10, 20), 10), ((40, 10, 30), 0), ((100, 10, 30), 60),
    ((60, 20, 25), 20), ((80, 20, 25), 40), ((100, 10, 20), 70), ((60, 10, None), None),
]  # fmt: skip


def prune(when, number, every, retention):
    """The newest of all earlier numbers that is let go, with all that are older."""
    numbers = range(0, number, every)
    gone = [each for each in numbers if retention.expires(Saved(None, when, each, ".safetensors"), when, number, every)]
    assert gone == [each for each in numbers if gone and each <= gone[-1]]
    return gone[-1] if gone else None


@pytest.mark.parametrize(("case", "newest"), EPOCHS)
def test_epochs_are_let_go_as_elsewhere(case, newest):
    epoch, every, keep = case
    assert prune("epoch", epoch, every, Retention(last_epochs=keep)) == newest


@pytest.mark.parametrize(("case", "newest"), STEPS)
def test_steps_are_let_go_as_elsewhere(case, newest):
    step, every, keep = case
    assert prune("step", step, every, Retention(last_steps=keep)) == newest


# what a kill leaves: of any file, of a state and a whole model of this name, of one that was being removed
OWN = [".tmp-0123456789abcdef.safetensors", ".tmp-0123456789abcdef", ".run-state.77.tmp", ".run-step00000002.77.tmp"]
OTHERS = [
    ".tmp-notes", ".tmp-0123456789abcdefg.txt", ".run-2-state.77.tmp", ".runner-state.77.tmp", ".run-notes.tmp",
    ".run-state.old.tmp", ".run.cfg.77.tmp", "run-state.77.tmp",
]  # fmt: skip


def make(path, age):
    """A folder with a file in it, this many seconds old."""
    path.mkdir()
    (path / "weights").touch()
    os.utime(path, (time.time() - age,) * 2)


def test_only_old_leftovers_of_this_name_go(tmp_path):
    for name in [*OWN, *OTHERS]:
        make(tmp_path / name, age=4000)
    fresh = [".tmp-00000000000000ff.safetensors", ".run-000004-state.78.tmp"]  # another run may be writing them
    for name in fresh:
        make(tmp_path / name, age=3000)
    clear_up(tmp_path, "run")
    assert {path.name for path in tmp_path.iterdir()} == {*OTHERS, *fresh}


def test_a_model_that_a_kill_left_aside_is_put_back(tmp_path):
    """Not only states, when they are resumed from: a whole model in a folder has nobody else to put it back."""
    make(tmp_path / ".run.old", age=0)
    make(tmp_path / ".other.old", age=0)
    clear_up(tmp_path, "run")
    assert {path.name for path in tmp_path.iterdir()} == {"run", ".other.old"}
