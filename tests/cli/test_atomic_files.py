"""A run that is killed or fails while saving must leave the file that was there before, and no litter."""

import os

import pytest

from library.cli import atomic_files
from library.cli.atomic_files import atomic_folder, atomic_path, remove_whole


def test_the_target_is_replaced_only_at_the_end(tmp_path):
    target = tmp_path / "weights.npz"
    target.write_text("old")
    with atomic_path(str(target)) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".npz"  # writers choose the format by it
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    target = tmp_path / "weights.safetensors"
    target.write_text("old")
    with pytest.raises(error), atomic_path(target) as temporary:
        temporary.write_text("half of the n")
        raise error
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_name_of_full_length_can_be_written(tmp_path):
    target = tmp_path / ("n" * 250 + ".npz")
    with atomic_path(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"


def make_file(path):
    with atomic_path(path) as temporary:
        temporary.write_text("new")


def make_folder(path):
    with atomic_folder(path) as temporary:
        (temporary / "state.json").write_text("new")


@pytest.mark.parametrize(("make", "num_renames"), [(make_file, 1), (make_folder, 2), (remove_whole, 1)])
def test_what_is_held_open_for_a_moment_is_waited_for(tmp_path, monkeypatch, make, num_renames):
    """Windows renames neither a file that a virus scanner holds open nor the folder that it is in."""
    target, real = tmp_path / "run-state", os.replace
    make_folder(target) if make is not make_file else target.touch()
    refusals = [False, True, True] * num_renames

    def replace_when_free(source, target):
        if refusals.pop():
            raise PermissionError(13, "held")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace_when_free)
    monkeypatch.setattr(atomic_files, "_FIRST_WAIT_SECONDS", 0.0)
    make(target)
    assert refusals == []
    assert [path.name for path in tmp_path.iterdir()] == [] if make is remove_whole else ["run-state"]


def test_a_target_that_stays_locked_is_reported_and_leaves_no_litter(tmp_path, monkeypatch):
    def refuse(source, target):
        raise PermissionError("locked")

    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(atomic_files, "_FIRST_WAIT_SECONDS", 0.0)
    with pytest.raises(PermissionError, match="locked"), atomic_path(tmp_path / "weights.ckpt") as temporary:
        temporary.write_text("new")
    assert list(tmp_path.iterdir()) == []
