"""If these fail, a run leaves no page that says how it went, or the page changes the run."""

import hashlib
import shutil
import signal
import sys
import time

import pytest

from library.cli.errors import UserError
from library.run_report.record import read_page
from tests import programs
from tests.end_to_end.runs import arguments, assert_same, copy_images, logged, start_command, train

PAGE = "run-run.html"
OPTIONS = {
    "no_run_report": None,
    "max_train_steps": 6,
    "save_every_n_steps": 3,
    "save_state": True,
    "validation_split": 0.2,
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return copy_images(tmp_path_factory.mktemp("images") / "data")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("a fox --w 64 --h 64 --s 1\na cat --n dog --w 64 --h 64 --s 1 --d 3\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(images, prompts, tmp_path_factory):
    """The folder of a run with everything, and its weights."""
    output = tmp_path_factory.mktemp("whole")
    samples = {"sample_prompts": prompts, "sample_every_n_steps": 3, "sample_at_first": True}
    secret = {"huggingface_token": "hf_not_for_eyes"}
    return output, train(images, output, **OPTIONS | samples | secret)


def test_a_page_changes_nothing_of_the_run(images, whole, tmp_path):
    weights = train(images, tmp_path, **OPTIONS | {"no_run_report": True})
    assert_same(weights, whole[1])
    assert not (tmp_path / PAGE).exists()


def test_a_finished_run_has_a_page_with_its_curves_samples_and_files(whole):
    output, _ = whole
    read = read_page(output / PAGE)
    record = read.record
    assert (record.ending.kind, record.step, record.num_steps) == ("finished", 6, 6)
    for name, tag in (("loss", "loss/current"), ("validation loss", "loss/validation"), ("lr/unet", "lr/unet")):
        assert [(step, pytest.approx(value)) for step, value in record.curves[name]] == logged(output, tag)
    assert record.epoch_ends == [step for step, _ in logged(output, "loss/epoch_average")]
    saved = {path.relative_to(output).as_posix(): path for path in output.glob("run*/*")}
    saved |= {path.name: path for path in output.glob("run*.safetensors")}
    assert {file.name for file in record.files} == set(saved) and len(
        saved
    ) == 3 + 3 * 3  # weights, and the files of states
    for file in record.files:
        content = saved[file.name].read_bytes()
        assert (file.size, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert [(row.prompt, row.negative_prompt) for row in record.samples] == [("a fox", ""), ("a cat", "dog")]
    assert set(read.images) == {(row, step) for row in (0, 1) for step in (0, 3, 6)}
    assert {phase.name for phase in record.phases} >= {"loading the model", "steps", "saves", "sample images"}
    assert "not_for_eyes" not in (output / PAGE).read_text(encoding="utf-8")


def test_a_resumed_run_goes_on_with_the_page_of_the_earlier_one(images, whole, tmp_path):
    output = tmp_path / "output"
    shutil.copytree(whole[0], output)
    train(images, output, **OPTIONS | {"resume": output / "run-step00000003-state"})
    before, after = read_page(whole[0] / PAGE).record, read_page(output / PAGE).record
    assert after.curves == before.curves and after.epoch_ends == before.epoch_ends
    assert [(session.first_step, session.ending) for session in after.sessions] == [(0, "finished")]
    assert after.first_step == 3 and {file.name for file in after.files} == {file.name for file in before.files}
    assert "--resume" not in after.command


@pytest.mark.skipif(sys.platform == "win32", reason="signals are other things there")
def test_a_stopped_run_has_a_page(images, tmp_path):
    process = start_command(arguments(images, tmp_path, **OPTIONS | {"max_train_steps": 500, "save_state": None}))
    deadline = time.monotonic() + 120
    while not (tmp_path / PAGE).exists():
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.02)
    assert read_page(tmp_path / PAGE).record.ending.kind == "running"
    process.terminate()
    process.communicate(timeout=60)
    record = read_page(tmp_path / PAGE).record
    assert process.returncode == 128 + signal.SIGTERM and record.ending.kind == "stopped"
    assert record.ending.text == f"SIGTERM after step {record.step}" and "run-step" in record.ending.hint
    assert [step for step, _ in record.curves["loss"]] == list(range(1, record.step + 1))
    assert {file.name for file in record.files} >= {f"run-step{record.step:08d}.safetensors"}


def test_a_run_that_fails_has_a_page_with_its_steps_and_error(images, tmp_path):
    with pytest.raises(UserError):
        train(images, tmp_path, **OPTIONS | {"max_train_steps": 60, "learning_rate": 1e30, "max_nonfinite_steps": 2})
    record = read_page(tmp_path / PAGE).record
    assert record.ending.kind == "failed" and "could not be applied" in record.ending.text
    assert record.num_skipped == len(record.skipped) == 2 and "not finite" in record.skipped[0][1]
    assert not [text for text in record.warnings if text in dict(map(reversed, record.skipped))]


def test_a_page_that_cannot_be_written_is_a_warning(images, whole, tmp_path, caplog):
    (tmp_path / PAGE).mkdir()
    (tmp_path / PAGE / "file").touch()
    assert_same(train(images, tmp_path, **OPTIONS), whole[1])
    assert [record.message for record in caplog.records if "page" in record.message and record.levelname == "WARNING"]


def test_a_dry_run_writes_no_page(images, tmp_path):
    train_options = arguments(images, tmp_path, **OPTIONS | {"dry_run": True})
    done = programs.run(["train_network.py", *train_options])
    assert done.returncode == 0 and not (tmp_path / PAGE).exists(), done.stderr[-2000:]
