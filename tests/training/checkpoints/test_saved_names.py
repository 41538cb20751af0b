"""If these fail, a run takes files for saves that are not its own, or does not find those that are."""

import os
from pathlib import Path

import pytest

from library.training.checkpoints.saved_names import saved_under, windows_problem


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


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a:b", "':'"), ("what?", "'?'"), ("a\tb", "no name may have"),
        ("CON", "CON is a device"), ("com3.v2", "com3 is a device"),
        ("run.", "at the end"), ("run ", "at the end"), ("con-fox", None), ("a.b", None), ("猫", None), ("COM10", None),
    ],
)  # fmt: skip
def test_what_windows_takes_for_a_name(name, said):
    """The rules are those of its page "Naming Files, Paths, and Namespaces"."""
    problem = windows_problem(name)
    assert problem == said if said is None else said in problem


@pytest.mark.parametrize("ignores_case", [False, True])
def test_names_that_differ_in_case_alone_are_one_where_the_file_system_says_so(tmp_path, monkeypatch, ignores_case):
    """Such a file system finds the other name; a link does that here."""
    (tmp_path / "Run-000001.safetensors").touch()
    if ignores_case:
        os.link(tmp_path / "Run-000001.safetensors", tmp_path / "run-000001.safetensors")
        entries = [tmp_path / "Run-000001.safetensors"]  # the folder has but one
        monkeypatch.setattr(Path, "iterdir", lambda folder: iter(entries))
    assert [saved.number for saved in saved_under(tmp_path, "run", ignore_case=True)] == [1] * ignores_case
    assert not list(saved_under(tmp_path, "run"))
