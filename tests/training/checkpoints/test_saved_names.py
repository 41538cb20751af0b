"""If these fail, a run removes saves that its user wanted to keep, or fills the disk."""

import pytest

from library.training.checkpoints.saved_names import Retention, Saved, saved_under

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


def test_only_what_a_run_of_that_name_has_written_is_found(tmp_path):
    own = [
        "run.safetensors", "run-000004.safetensors", "run-step00001000.ckpt", "run-state", "run-000004-state",
        "run-step00001000-state", "run-1000000.safetensors", "run.pt",
    ]  # fmt: skip
    others = ["run-2.safetensors", "run2.safetensors", "run-0004.safetensors", "run.txt", "run-000004.safetensors.bak",
              "runner-000004.safetensors", "run", "run-000005", ".run-000004-state.old", "sample"]  # fmt: skip
    for name in [*own, *others]:
        (tmp_path / name).mkdir() if name.endswith("-state") or "." not in name else (tmp_path / name).touch()
    (tmp_path / "run-000006").mkdir()  # a whole model in Diffusers' form
    (tmp_path / "run-000006" / "model_index.json").touch()
    found = {saved.path.name: (saved.when, saved.number, saved.is_state) for saved in saved_under(tmp_path, "run")}
    assert set(found) == {*own, "run-000006"}
    assert found["run-step00001000-state"] == ("step", 1000, True)
    assert found["run-000004.safetensors"] == ("epoch", 4, False)
    assert found["run.safetensors"] == ("end", 0, False)


def test_a_name_with_signs_of_patterns_is_taken_literally(tmp_path):
    (tmp_path / "a.b-000001.safetensors").touch()
    (tmp_path / "axb-000002.safetensors").touch()
    assert [saved.number for saved in saved_under(tmp_path, "a.b")] == [1]
