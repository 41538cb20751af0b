"""If these fail, a run that was killed while it saved has lost what it had."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from library.cli.errors import UserError
from library.training.checkpoints.resuming import read_whole_state
from library.training.checkpoints.states import RunIdentity, check_files, read_state, read_state_header, write_state
from library.training.step_plan import Position
from tests import programs


def save(folder: Path, step: int) -> None:
    facts = RunIdentity(seed=3, num_micro_batches=7, group_size=2)
    weights, training = {"w": torch.full((2,), float(step))}, {"losses": torch.tensor([0.5, step])}
    write_state(folder, Position(1, step, 10 + step), facts, weights, training)


def step_of(folder: Path) -> tuple[int, float]:
    header = read_state_header(str(folder))  # first, as a run does
    check_files(folder, header)
    weights, training = read_state(str(folder))
    assert training["losses"][1] == weights["w"][0]
    return header.step_in_epoch, float(weights["w"][0])


def test_a_state_reads_back_and_is_replaced_whole(tmp_path):
    folder = tmp_path / "run-state"
    for step in (1, 2):
        save(folder, step)
        assert step_of(folder) == (step, step)
    assert {path.name for path in tmp_path.iterdir()} == {"run-state"}
    header = read_state_header(str(folder))
    assert (header.epoch, header.global_step, header.seed, header.num_micro_batches) == (1, 12, 3, 7)


def test_a_state_that_says_nothing_of_an_epoch_s_end_owes_none(tmp_path):
    """As states did before they could say it."""
    save(tmp_path / "run-state", 1)
    header = tmp_path / "run-state" / "state.json"
    facts = json.loads(header.read_text())
    assert facts.pop("is_epoch_end_due") is False
    header.write_text(json.dumps(facts))
    assert read_whole_state(str(tmp_path / "run-state")).position == Position(1, 1, 11)


class Killed(BaseException):
    """What no handler of errors may catch."""


@pytest.mark.parametrize("survived", range(9))
def test_a_kill_at_any_rename_or_flush_leaves_the_state_before_or_the_new_one(tmp_path, monkeypatch, survived):
    """The calls that reach the disk are counted, and the process "dies" at one of them."""
    folder = tmp_path / "run-state"
    save(folder, 1)
    calls = []

    def dying(real):
        def call(*args):
            calls.append(real.__name__)
            if len(calls) > survived:
                raise Killed
            return real(*args)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying(os.replace))
        patch.setattr(os, "fsync", dying(os.fsync))
        try:
            save(folder, 2)
            finished = True
        except Killed:
            finished = False
    assert finished == (survived >= 7)  # three files and their folder flushed, two renames, their folder flushed
    # the next start finds one whole state, and the next save works and clears away what was left
    assert step_of(folder) in ({(2, 2.0)} if finished else {(1, 1.0), (2, 2.0)})
    save(folder, 3)
    assert step_of(folder) == (3, 3)
    assert {path.name for path in tmp_path.iterdir()} == {"run-state"}


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import torch
from library.training.checkpoints.states import RunIdentity, write_state
from library.training.step_plan import Position
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
facts = RunIdentity(seed=1, num_micro_batches=1, group_size=1)
weights, training = int(sys.argv[2]), int(sys.argv[3])
try:
    write_state(Path(sys.argv[1]), Position(), facts, {"w": torch.zeros(weights)}, {"losses": torch.zeros(training)})
except OSError:
    sys.exit(28)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the system has no limit of this kind")
@pytest.mark.parametrize("sizes", [("200000", "10"), ("10", "200000")], ids=["weights", "training"])
def test_a_file_that_the_system_refuses_leaves_the_state_before_and_no_rest(tmp_path, sizes):
    folder = tmp_path / "run-state"
    save(folder, 1)
    done = programs.run(["-c", FULL_DISK, folder, *sizes])
    assert done.returncode == 28
    assert step_of(folder) == (1, 1)
    assert {path.name for path in tmp_path.iterdir()} == {"run-state"}


def test_what_is_no_state_is_said(tmp_path):
    for make, said in (
        (lambda: None, "not a folder"),
        (lambda: (tmp_path / "s").mkdir(), "no state.json"),
        (lambda: (tmp_path / "s" / "state.json").write_text("{}"), "damaged"),
        (lambda: (tmp_path / "s" / "state.json").write_text("[1]"), "damaged"),
    ):
        make()
        with pytest.raises(UserError, match=said):
            read_state_header(str(tmp_path / "s"))
    save(tmp_path / "t", 1)
    (tmp_path / "t" / "training.pt").unlink()
    with pytest.raises(UserError, match="lacks training.pt"):
        check_files(tmp_path / "t", read_state_header(tmp_path / "t"))


def test_the_folder_that_holds_states_is_answered_with_their_names(tmp_path, monkeypatch):
    for number, name in enumerate(("run-000001-state", "run-000002-state", "other-state", "run-state")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("{}")
        os.utime(tmp_path / name / "state.json", (number, number))
    monkeypatch.chdir(tmp_path)
    for folder in (".", str(tmp_path)):
        with pytest.raises(UserError, match="holds no state.json") as caught:
            read_state_header(folder)
        newest = ", ".join(str(tmp_path / name) for name in ("run-state", "other-state", "run-000002-state"))
        assert caught.value.hint == f"give one of the states in it: {newest} and 1 more"
