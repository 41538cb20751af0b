"""If these fail, tags are wrong, lost, or written elsewhere than a user asked for."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time

import huggingface_hub.constants
import pytest
from PIL import Image

from library.captioning.tagging.tag_files import read_journals
from library.captioning.tagging.tag_images import JOB
from library.data.config.config import SubsetConfig
from library.data.scan.metadata_file import scan_metadata
from tests import programs
from tests.captioning_models import TAGGER_TAGS, write_tagger
from tests.end_to_end.launches import TWO_PROCESSES, ended, start
from tests.finetune.conftest import save_colours

COLOUR = (200, 100, 50)  # red, green, blue: 0.784, 0.392 and 0.196 of 255


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    return write_tagger(tmp_path_factory.mktemp("tagger"))


@pytest.fixture
def images(tmp_path):
    save_colours(tmp_path / "wide.png", (16, 8), COLOUR)
    save_colours(tmp_path / "square.png", (8, 8), COLOUR)
    save_colours(tmp_path / "sub" / "large.png", (40, 40), COLOUR)
    return tmp_path


@pytest.fixture
def tag(run, tagger):
    return lambda *argv: run(JOB, *argv, "--model_dir", tagger)


def test_pixels_arrive_as_the_model_expects_them(images, tag):
    """Means of channels and single pixels: order of colours, padding with white, and size."""
    assert tag(images, "--recursive", "--thresh", "0.3").status == 0
    # square: all is the colour: green 0.39 and red 0.78 pass, blue 0.196 does not
    square = "green_mean, red_mean, centre_red, edge_red, rei_(series_a)\n"
    assert (images / "square.txt").read_text() == square
    assert (images / "sub" / "large.txt").read_text() == square
    # wide: means are (colour + white) / 2: 0.6, 0.7, 0.89; the corner is white, centre and left edge are the colour
    wide = "blue_mean, green_mean, red_mean, ^_^, centre_red, edge_red, rei_(series_a)\n"
    assert (images / "wide.txt").read_text() == wide
    assert tag(images, "--thresh", "0.8", "--overwrite").status == 0
    assert (images / "wide.txt").read_text() == "red_mean, ^_^\n"
    tall = save_colours(images / "tall.png", (8, 16), COLOUR)
    assert tag(images, "--thresh", "0.8").status == 0
    assert tall.with_suffix(".txt").read_text() == "red_mean, ^_^, edge_red\n"  # its left edge is white


def test_transparency_is_white_and_rotation_is_applied(images, tag):
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(images / "clear.png")
    turned = Image.new("RGB", (16, 8), COLOUR)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees: 8x16
    turned.save(images / "turned.jpg", exif=exif, quality=100)
    assert tag(images, "--thresh", "0.8").status == 0
    white = [name for name, category, _ in TAGGER_TAGS if category != 9]
    assert (images / "clear.txt").read_text() == ", ".join(white) + "\n"
    assert (images / "turned.txt").read_text() == "red_mean, ^_^, edge_red\n"


def test_the_batch_size_changes_nothing_and_a_model_may_fix_its_own(images, tag, run, tmp_path_factory):
    for number in range(5):
        save_colours(images / f"{number}.png", (8, 8), (number * 60, 255 - number * 60, 100))
    assert tag(images).status == 0
    expected = {path.name: path.read_text() for path in images.glob("*.txt")}
    assert len(expected) == 7 and len(set(expected.values())) > 3
    fixed = write_tagger(tmp_path_factory.mktemp("fixed"), batch=2)
    for model, batch_size in ((None, 3), (fixed, 1), (fixed, 5)):
        words = ("--overwrite", "--batch_size", batch_size)
        assert (tag(images, *words) if model is None else run(JOB, images, *words, "--model_dir", model)).status == 0
        assert {path.name: path.read_text() for path in images.glob("*.txt")} == expected


def test_what_exists_is_kept_appended_to_or_replaced(images, tag):
    file = images / "square.txt"
    file.write_text("my own, green_mean")
    said = tag(images)
    assert said.status == 0 and file.read_text() == "my own, green_mean"
    assert said.lines[-1:] == ["1 tagged, 1 skipped (they have a .txt file, which --overwrite replaces)"]
    for _ in range(2):  # a second time adds nothing
        assert tag(images, "--append_tags", "--thresh", "0.7").status == 0
        assert file.read_text() == "my own, green_mean, red_mean, centre_red, edge_red\n"
    assert tag(images, "--overwrite", "--thresh", "0.7").status == 0
    assert file.read_text() == "red_mean, centre_red, edge_red\n"


def test_an_image_or_file_that_fails_is_named_and_the_others_are_tagged(images, tag):
    (images / "broken.png").write_bytes((images / "wide.png").read_bytes()[:40])
    (images / "square.txt").write_bytes(b"t\xff")
    said = tag(images, "--append_tags")
    assert said.status == 1 and (images / "square.txt").read_bytes() == b"t\xff"
    assert said.lines[-1] == "1 tagged, 2 failed"
    assert "broken.png cannot be read" in said.lines[-3] and "square.txt is not UTF-8" in said.lines[-2]
    for name in ("wide.png", "square.png"):
        (images / name).unlink()
    assert tag(images).status == 2  # nothing could be done


def test_images_of_one_name_share_a_file_of_which_the_first_is_the_owner(images, tag):
    shutil.copy(images / "wide.png", images / "square.jpg")
    said = tag(images, "--thresh", "0.8")
    assert said.lines[0] == (  # a warning
        "1 images have no caption file of their own, since another image has the same name before its ending: "
        + str(images / "square.png")
    )
    assert (images / "square.txt").read_text() == "red_mean, ^_^\n" and said.status == 0


@pytest.mark.parametrize("ending", [".json", ".jsonl"])
def test_all_tags_go_into_one_file(ending, images, tag, tmp_path_factory):
    path = tmp_path_factory.mktemp("out") / f"tags{ending}"
    wide, square = str(images / "wide.png"), str(images / "square.png")
    kept = {"caption": "a square", "tags": "mine"}
    if ending == ".json":
        path.write_text(json.dumps({square: kept, "other.png": {"tags": "x"}}))
    else:
        path.write_text("".join(json.dumps({"image_path": name, **entry}) + "\n" for name, entry in (
            (square, kept), ("other.png", {"tags": "x"}))))  # fmt: skip

    def entries():
        if ending == ".json":
            return json.loads(path.read_text())
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return {line.pop("image_path"): line for line in lines}

    words = ("--thresh", "0.7", "--output_path", path)
    said = tag(images, *words)
    assert said.lines[-1] == "1 tagged, 1 skipped (--output_path has their tags, which --overwrite replaces)"
    assert entries() == {
        square: kept,
        "other.png": {"tags": "x"},
        wide: {"tags": "red_mean, ^_^, centre_red, edge_red"},
    }
    assert tag(images, *words, "--append_tags").status == 0
    assert entries()[square] == {"caption": "a square", "tags": "mine, red_mean, centre_red, edge_red"}
    assert tag(images, *words, "--overwrite").status == 0
    assert entries()[square] == {"caption": "a square", "tags": "red_mean, centre_red, edge_red"}
    assert list(images.glob("*.txt")) == [] and [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_file_of_all_tags_is_read_as_metadata(images, tag, tmp_path_factory):
    path = tmp_path_factory.mktemp("metadata") / "tags.json"
    assert tag(images, "--recursive", "--thresh", "0.8", "--output_path", path).status == 0
    (record,) = scan_metadata(SubsetConfig("--in_json", metadata_file=str(path)), 0)[-1:]
    assert record.path == str(images / "wide.png") and record.caption == "red_mean, ^_^"


def test_what_a_killed_run_has_tagged_is_kept(images, tag):
    path = images / "tags.json"
    wide, square = str(images / "wide.png"), str(images / "square.png")
    cut = json.dumps({"image_path": square, "tags": "of the killed run"})
    journal = json.dumps({"image_path": wide, "tags": "of the killed run"}) + "\n" + cut[:-9]
    (images / "tags.json.0.partial").write_text(journal)  # as it is left: its last line is not whole
    assert tag(images, "--output_path", path, "--thresh", "0.7").lines[-1].startswith("1 tagged, 1 skipped")
    assert json.loads(path.read_text()) == {
        square: {"tags": "red_mean, centre_red, edge_red"},
        wide: {"tags": "of the killed run"},
    }
    assert list(images.glob("*.partial")) == []


def test_a_run_that_is_killed_leaves_what_it_has_tagged(images, tagger):
    """Whatever the instant: each image's tags are in a file before the next is tagged."""
    first = save_colours(images / "first.png", (300, 300), COLOUR)
    for number in range(400):
        shutil.copy(first, images / f"{number}.png")
    words = ["--model_dir", tagger, "--output_path", images / "tags.json"]
    script = programs.ROOT / "finetune" / "tag_images_by_wd14_tagger.py"
    program = subprocess.Popen([sys.executable, script, images, *words], stderr=subprocess.DEVNULL)
    journal = images / "tags.json.0.partial"
    while not (journal.exists() and journal.read_text().count("\n") > 20):
        assert program.poll() is None
        time.sleep(0.001)
    program.kill()
    program.wait()
    assert len(read_journals(str(images / "tags.json"))) >= 20 and not (images / "tags.json").exists()


def test_a_foreign_file_stays_as_it_was(images, tag):
    path = images / "tags.json"
    path.write_text("[1]")
    said = tag(images, "--output_path", path)
    assert said.status == 2 and path.read_text() == "[1]" and "is not a file of tags" in said.error[0]


def test_frequencies_are_those_of_the_run(images, tag):
    said = tag(images, "--recursive", "--thresh", "0.8", "--frequency_tags")
    assert said.lines[-3:-1] == ["^_^: 1", "red_mean: 1"]


def test_without_a_model_and_a_network_it_is_said_what_to_put_where(images, run, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (images / "broken.png").write_bytes(b"x")
    models = tmp_path / "models"
    said = run(JOB, images, "--model_dir", models)
    folder = models / "SmilingWolf_wd-v1-4-convnext-tagger-v2"
    assert said.status == 2 and said.error[0].startswith("--repo_id SmilingWolf/wd-v1-4-convnext-tagger-v2: no")
    assert said.error[1].strip().startswith(f"put its files model.onnx and selected_tags.csv into {folder}, or")
    assert not any("broken.png" in line for line in said.lines)  # no image was read
    write_tagger(folder)
    assert run(JOB, images, "--model_dir", models).status == 1  # as the error said


def test_the_model_says_which_size_it_takes(images, run, tmp_path_factory):
    """A tagger of 16x16: of a wide image the upper quarter, and the corner in it, is white; (4, 4) is in the colour."""
    folder = write_tagger(tmp_path_factory.mktemp("tagger"), size=16)
    assert run(JOB, images, "--model_dir", folder, "--thresh", "0.8").status == 0
    assert (images / "wide.txt").read_text() == "red_mean, ^_^\n"
    assert run(JOB, images, "--model_dir", folder, "--thresh", "0.7", "--overwrite").status == 0
    # row 4 is the first of the colour in 16 rows, and the second of four in 8
    assert (images / "wide.txt").read_text() == "red_mean, ^_^, centre_red, edge_red\n"


@pytest.mark.parametrize("damage", ["corrupt", "no onnx", "other list"])
def test_a_model_that_is_none_or_has_another_list_is_named(damage, images, run, tmp_path_factory):
    folder = write_tagger(tmp_path_factory.mktemp("tagger"))
    if damage == "other list":
        with open(folder / "selected_tags.csv", "a") as file:
            file.write("1,one more,0,1\n")
    else:
        content = (folder / "model.onnx").read_bytes()
        (folder / "model.onnx").write_bytes(content[:200] if damage == "corrupt" else b"not a model")
    said = run(JOB, images, "--model_dir", folder)
    assert said.status == 2 and str(folder / "model.onnx") in said.error[0] and said.error[1].startswith("  ")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--caption_extension", "png"), "--caption_extension .png is that of images"),
        (("--output_path", "tags.txt"), "--output_path tags.txt ends with neither"),
        (("--output_path", "nowhere/tags.json"), "folder nowhere does not exist"),
        (("--tag_replacement", "a"), "--tag_replacement a is not valid"),
        (("--thresh", "35"), "--thresh 35 is not valid"),
        (("--device", "gpu"), "--device gpu is not valid"),
        (("--treshold", "0.3"), "--treshold"),
    ],
)
def test_a_mistake_is_answered_before_anything_is_loaded(words, named, images, tag):
    said = tag(images, *words)
    assert said.status == 2 and named in said.error[0] and said.error[1].startswith("  ")


@pytest.mark.slow
def test_two_processes_tag_what_one_does(images, tag, tagger):
    for number in range(5):
        save_colours(images / f"{number}.png", (8, 8), (number * 60, 255 - number * 60, 100))
    (images / "broken.png").write_bytes(b"x")
    assert tag(images, "--output_path", images / "one.json").status == 1
    words = [str(images), "--model_dir", str(tagger), "--output_path", str(images / "two.json")]
    said = ended(start(words, *TWO_PROCESSES, script="finetune/tag_images_by_wd14_tagger.py"))
    assert "7 tagged, 1 failed" in said
    assert (images / "two.json").read_text() == (images / "one.json").read_text()
