"""If this fails, merging or cleaning writes another metadata file than other programs do, or loses one."""

import json
import os
from pathlib import Path

import pytest

from finetune import clean_captions_and_tags, merge_captions_to_metadata, merge_dd_tags_to_metadata
from library.cli.errors import UserError
from library.cli.jobs.job import run_job

CASES = json.loads((Path(__file__).parents[1] / "metadata" / "reference_cases.json").read_text(encoding="utf-8"))
JOBS = {
    module.__name__.removeprefix("finetune."): module.JOB
    for module in (clean_captions_and_tags, merge_captions_to_metadata, merge_dd_tags_to_metadata)
}
# what the inputs of two cases were made by
MADE_BEFORE = {
    "expected/chain2_dd.json": [
        ("merge_captions_to_metadata", ["input_ok", "expected/chain2_dd.json", "--full_path", "--recursive"]),
        ("merge_dd_tags_to_metadata", ["input_ok", "expected/chain2_dd.json", "--full_path", "--recursive"]),
    ],
    "expected/chainb2_cap.json": [
        ("merge_dd_tags_to_metadata", ["input_ok", "expected/chainb2_cap.json"]),
        ("merge_captions_to_metadata", ["input_ok", "expected/chainb2_cap.json"]),
    ],
}


def run(name, *argv):
    return run_job(JOBS[name], [str(word) for word in argv])


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The reference's files, in the current folder. Of images only the names count."""
    for name, text in CASES["files"].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    (tmp_path / "expected").mkdir()
    for case in CASES["cases"]:
        (tmp_path / "expected" / f"{case['case']}.json").write_text(json.dumps(case["expected"]))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", CASES["cases"], ids=lambda case: case["case"])
def test_files_are_identical_to_those_of_the_reference_scripts(case, here):
    for source, target in case["before"]:
        Path(target).write_bytes(Path(source).read_bytes())
    for script, argv in MADE_BEFORE.get(case["argv"][0], ()):
        run(script, *argv)
    assert run(case["script"], *case["argv"]) == 0
    (written,) = Path("work").iterdir()
    assert written.read_text(encoding="utf-8") == json.dumps(case["expected"], indent=2)


def test_an_existing_file_is_added_to_where_no_other_is_named(here):
    Path("work/o.json").write_text('{"img01": {"tags": "kept", "train_resolution": [64, 64]}, "gone": {"extra": 1}}')
    assert run("merge_captions_to_metadata", "input_ok", "work/o.json") == 0
    entries = json.loads(Path("work/o.json").read_text())
    assert entries["img01"] == {"tags": "kept", "train_resolution": [64, 64], "caption": "an anime girl with long hair"}
    assert entries["gone"] == {"extra": 1} and entries["img02"] == {"caption": "line one\nline two"}


@pytest.mark.parametrize("text", ['["img01"]', '{"img01": "a girl"}', '{"img01": {"caption": 5}}', '{"img01": {', "\0"])
@pytest.mark.parametrize("name", sorted(JOBS))
def test_what_is_no_metadata_file_stays_as_it_was(name, text, here, capsys):
    Path("work/o.json").write_text(text)
    first = "work/o.json" if name.startswith("clean") else "input_ok"
    assert run(name, first, "work/o.json") == 2
    assert "error: " in (said := capsys.readouterr().err) and "work/o.json" in said
    assert Path("work/o.json").read_text() == text


def test_images_without_a_caption_are_named_and_keep_their_entry(here, capsys, caplog):
    Path("input_missing/x3.caption").write_bytes(b"caf\xe9")
    Path("work/o.json").write_text('{"x2": {"caption": "from before"}}')
    assert run("merge_captions_to_metadata", "input_missing", "work/o.json") == 1
    assert json.loads(Path("work/o.json").read_text()) == {
        "x2": {"caption": "from before"},
        "x1": {"caption": "has caption"},
    }
    said = caplog.text + capsys.readouterr().err
    assert "input_missing/x2.png" in said and "does not exist" in said
    assert "input_missing/x3.png" in said and "not UTF-8" in said


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["input_empty", "work/o.json"], "contains no images"),
        (["nowhere", "work/o.json"], "does not exist"),
        (["input_ok", "work/o.json", "--caption_extension", "tgs"], "8 have a .txt file: add --caption_extension .txt"),
        (["input_ok", "work"], "is a folder"),
        (["input_ok", "nowhere/o.json"], "create the folder"),
        (["input_ok", "work/o.json", "--recursive"], "--recursive needs --full_path"),
        (["input_ok", "work/o.json", "--in_json", "nothere.json"], "nothere.json does not exist"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_merged_is_an_error_and_writes_nothing(argv, said, here, capsys):
    try:
        assert run("merge_captions_to_metadata", *argv) == 2
        shown = capsys.readouterr().err
    except UserError as error:  # of the command line
        shown = str(error)
    assert said in shown
    assert list(Path("work").iterdir()) == []


def test_the_file_is_replaced_as_a_whole_and_a_link_to_it_stays(here):
    """One that was written in place would be lost by a kill; one that replaces a link leaves the linked file old."""
    Path("real.json").write_text("{}")
    os.link("real.json", "second_name.json")
    os.symlink("../real.json", "work/o.json")
    run("merge_captions_to_metadata", "input_samestem", "work/o.json")
    assert Path("second_name.json").read_text() == "{}"
    assert Path("work/o.json").is_symlink()
    assert json.loads(Path("real.json").read_text()) == {"a": {"caption": "shared caption"}}


def test_images_that_an_entry_cannot_tell_apart_are_warned_of(here, caplog):
    run("merge_captions_to_metadata", "input_samestem", "work/o.json")
    assert "images of the same name have one entry: input_samestem/a.jpg and input_samestem/a.png (a)" in caplog.text
    run("merge_dd_tags_to_metadata", "input_samestem", "work/o.json", "--full_path")
    assert "a and input_samestem/a.jpg; give --full_path to all scripts or to none" in caplog.text.replace(
        ", a and input_samestem/a.png", ""
    )


def test_cleaning_an_empty_file_is_an_error_and_the_rules_of_a_file_count(here):
    Path("empty.json").write_text("{}")
    assert run("clean_captions_and_tags", "empty.json", "work/o.json") == 2
    Path("rules.toml").write_text('caption_replacements = [["OLD", "new"]]\n')
    assert run("clean_captions_and_tags", "existing.json", "work/o.json", "--rules", "rules.toml") == 0
    entries = json.loads(Path("work/o.json").read_text())
    assert entries["img02"]["caption"] == "new2" and entries["notags"]["caption"] == "a woman"


def test_how_many_tags_went_is_said(here, caplog):
    """All behind a rating goes with it, as in other programs."""
    caplog.set_level("INFO")
    Path("tags.json").write_text('{"a": {"tags": "1girl, rating:safe, solo, long_hair"}, "b": {"tags": "cat"}}')
    run("clean_captions_and_tags", "tags.json", "work/o.json")
    assert "3 of 5 tags went" in caplog.text


def test_null_texts_stay(here):
    Path("nulls.json").write_text('{"a": {"caption": null, "tags": "a_b"}}')
    run("clean_captions_and_tags", "nulls.json", "work/o.json")
    assert json.loads(Path("work/o.json").read_text()) == {"a": {"caption": None, "tags": "a b"}}


def test_nothing_is_written_where_no_caption_can_be_read(here):
    Path("input_samestem/a.caption").write_bytes(b"caf\xe9")
    assert run("merge_captions_to_metadata", "input_samestem", "work/o.json") == 2
    assert list(Path("work").iterdir()) == []
