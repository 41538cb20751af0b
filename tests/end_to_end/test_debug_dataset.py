"""`--debug_dataset` shows the data instead of training; training says which captions it does not read whole."""

import logging
import os
import re
import shutil
import sys

import pytest

from tests.end_to_end.runs import arguments, run_command, train


def test_the_page_is_written_and_nothing_is_trained(data_dir, tmp_path):
    # 6 tokens, as measured with OpenAI's vocabulary
    (caption,) = data_dir.rglob("fox_01.txt")
    caption.write_text("a cat, sitting, red", encoding="utf-8")
    before = {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")}
    # there is no such model: none is needed
    argv = arguments(data_dir, tmp_path / "out", pretrained_model_name_or_path="no.safetensors", logging_dir=None)
    done = run_command([*argv, "--debug_dataset"])
    assert done.returncode == 0, done.stderr
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert written == [tmp_path / "out" / "dataset" / "index.html"]
    assert str(written[0]) in done.stderr
    assert {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")} == before
    page = written[0].read_text(encoding="utf-8")
    assert len(re.findall("<article", page)) == 5
    assert re.search(r'title="tokens of 75">6</span><span class="text" dir="auto">a cat, sitting, red<', page)


def test_neither_model_nor_output_folder_is_required(data_dir, tmp_path):
    argv = arguments(data_dir, tmp_path, pretrained_model_name_or_path=None, output_dir=None, logging_dir=None)
    done = run_command([*argv, "--debug_dataset", "--debug_dataset_dir", str(tmp_path / "page")])
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "page").iterdir()] == ["index.html"]
    for extra, said in ((["--debug_dataset"], "--debug_dataset has no folder"), ([], "--output_dir is missing")):
        done = run_command([*argv, *extra])
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_the_window_needs_a_display(data_dir, tmp_path):
    if not sys.platform.startswith("linux"):
        pytest.skip("other systems always have a display")
    env = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    done = run_command([*arguments(data_dir, tmp_path / "out"), "--debug_dataset_window"], env=env)
    assert done.returncode == 2 and "--debug_dataset_window needs a display" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()


def test_a_bad_image_does_not_end_the_report(data_dir, tmp_path):
    (image,) = data_dir.rglob("fox_02.png")
    content = image.read_bytes()
    image.write_bytes(content[:3000] + bytes(1000) + content[4000:])  # header and end are sound
    (empty,) = data_dir.rglob("fox_03.png")
    empty.write_bytes(b"")
    done = run_command([*arguments(data_dir, tmp_path / "out", logging_dir=None), "--debug_dataset"])
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "out" / "dataset" / "index.html").read_text(encoding="utf-8")
    assert re.search(r'class="unreadable">image [^<]*fox_02.png cannot be read', page)
    assert re.search(r"<li>image [^<]*fox_03.png is empty", page)


def test_training_says_once_which_captions_are_too_long(data_dir, tmp_path, caplog):
    for number, count in ((1, 75), (2, 76), (3, 200)):
        (caption,) = data_dir.rglob(f"fox_0{number}.txt")
        caption.write_text("cat " * count, encoding="utf-8")  # a token each
    with caplog.at_level(logging.WARNING):
        train(data_dir, tmp_path / "out", max_train_steps=1)
    said = [record.getMessage() for record in caplog.records if "tokens" in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("2 captions have more than 75 tokens") and "(76)" in said[0] and "(200)" in said[0]
    shutil.rmtree(tmp_path / "out")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        train(data_dir, tmp_path / "out", max_train_steps=1, max_token_length=225)
    assert not [record for record in caplog.records if "tokens" in record.getMessage()]
