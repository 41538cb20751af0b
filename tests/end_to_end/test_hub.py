"""If these fail, somebody who trains on a rented machine finds nothing on the Hub, or cannot go on from there."""

import os
import shlex
import shutil
import signal
import sys
import threading
import time

import pytest
from safetensors.torch import load_file

from tests.end_to_end.runs import BASE, arguments, assert_same, copy_images, run_command, start_command, train
from tests.hub_server import READ_TOKEN, WRITE_TOKEN, Fault, running_hub
from tests.tiny_models import make_tiny_sdxl, write_sdxl_folder

NAME = "someone/loras"
OPTIONS = {"save_every_n_steps": 2, "save_state": True, "cache_latents": True}
UPLOADS = {
    "huggingface_repo_id": NAME, "huggingface_path_in_repo": "fox", "huggingface_token": WRITE_TOKEN,
    "save_state_to_huggingface": True, "async_upload": True,
}  # fmt: skip
PARTS = ("state.json", "training.pt", "weights.safetensors")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return copy_images(tmp_path_factory.mktemp("images") / "data")


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    return train(images, tmp_path_factory.mktemp("whole"), **OPTIONS)


@pytest.fixture
def hub():
    with running_hub() as hub:
        yield hub


def run(hub, home, argv):
    return run_command(argv, env={**os.environ, **hub.environment(home)})


def test_saves_and_states_are_uploaded_and_a_run_goes_on_from_them(images, whole, hub, tmp_path):
    out = tmp_path / "out"
    hub.faults.append(Fault("POST .*/commit/", "hang up"))  # one that passes
    done = run(hub, tmp_path / "home", arguments(images, out, **OPTIONS, **UPLOADS))
    assert done.returncode == 0, done.stderr[-3000:]
    repository = hub.repositories["model", NAME]
    assert repository.is_private
    names = ["run", *(f"run-step0000000{step}" for step in (2, 4, 6, 8))]
    files = [f"{name}.safetensors" for name in names] + [f"{name}-state/{part}" for name in names for part in PARTS]
    assert repository.files == {f"fox/{name}": (out / name).read_bytes() for name in files}
    assert hub.large_files, "both ways of the Hub to take files were used"
    assert f"uploaded {out / 'run-state'} to {NAME}/fox/run-state" in done.stderr
    # the token is in no file, and nothing that was said holds it
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any("tfevents" in path.name for path in written) and any(path.name == "state.json" for path in written)
    assert [path for path in written if WRITE_TOKEN.encode() in path.read_bytes()] == []
    assert WRITE_TOKEN not in done.stderr + done.stdout

    # on another machine, from the middle of the run
    there = {**OPTIONS, "resume": f"{NAME}/fox/run-step00000004-state", "huggingface_token": READ_TOKEN}
    argv = [*arguments(images, tmp_path / "there", **there), "--resume_from_huggingface"]
    hub.faults.append(Fault("GET .*/resolve/", 503))
    done = run(hub, tmp_path / "other_home", argv)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(load_file(tmp_path / "there" / "run.safetensors"), whole)
    assert "resuming after step 4" in done.stderr and f"at main, commit {repository.commits[-1][0]}" in done.stderr
    # what was downloaded once is there without a Hub; the weights of others were left alone
    assert set(hub.downloads()) == {f"fox/run-step00000004-state/{part}" for part in PARTS}
    shutil.rmtree(tmp_path / "there")
    hub.faults.append(Fault("/", "hang up", times=99))
    done = run(hub, tmp_path / "other_home", argv)
    assert done.returncode == 0 and "its cache is used" in done.stderr, done.stderr[-3000:]
    assert_same(load_file(tmp_path / "there" / "run.safetensors"), whole)


def test_a_hub_that_fails_changes_nothing_in_what_is_learned(images, whole, hub, tmp_path):
    hub.faults.append(Fault("POST .*/commit/", 403, times=99))
    argv = arguments(images, tmp_path / "out", **{**OPTIONS, **UPLOADS, "async_upload": None})
    done = run(hub, tmp_path / "home", argv)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(load_file(tmp_path / "out" / "run.safetensors"), whole)
    assert "error: 10 files of the run were not uploaded to the Hub: run-step00000002.safetensors, " in done.stderr
    assert "Traceback" not in done.stderr and WRITE_TOKEN not in done.stderr
    assert hub.repositories["model", NAME].files == {}


def test_a_repository_that_cannot_be_written_to_ends_the_run_before_the_model_is_loaded(images, hub, tmp_path):
    argv = arguments(images, tmp_path / "out", **{**UPLOADS, **OPTIONS, "huggingface_token": READ_TOKEN})
    done = run(hub, tmp_path / "home", argv)
    assert done.returncode == 2 and f"error: --huggingface_repo_id {NAME}: " in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and "loaded base" not in done.stderr and READ_TOKEN not in done.stderr


def test_a_configuration_that_is_written_holds_no_token(images, tmp_path):
    config = tmp_path / "run.toml"
    argv = arguments(images, tmp_path, **UPLOADS, config_file=config, output_config=True)
    done = run_command(argv)
    assert done.returncode == 0, done.stderr
    assert NAME in config.read_text() and WRITE_TOKEN not in config.read_text() + done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals are other things there")
def test_a_run_that_is_stopped_finishes_its_uploads_and_keeps_the_token(images, hub, tmp_path):
    gate, out = threading.Event(), tmp_path / "out"
    hub.faults.append(Fault("POST .*/commit/", gate))
    given = {**OPTIONS, **UPLOADS, "max_train_steps": 400}
    env = {**os.environ, **hub.environment(tmp_path / "home")}
    process = start_command(arguments(images, out, **given), env=env)
    deadline = time.monotonic() + 120
    while not hub.asked_for("POST .*/commit/"):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.02)
    process.terminate()
    while not any(line.startswith("waiting for ") for line in process.stderr):
        assert process.poll() is None and time.monotonic() < deadline
    gate.set()
    said = process.stderr.read()
    assert process.wait(60) == 143, said
    files = {f"fox/{path.relative_to(out).as_posix()}" for path in out.rglob("*") if path.is_file()}
    assert set(hub.repositories["model", NAME].files) == {name for name in files if "/logs/" not in name}
    last = said.strip().splitlines()[-1]
    assert "To resume (give --huggingface_token again): python" in last and WRITE_TOKEN not in said
    words = shlex.split(last.split("again): ")[1])
    assert words[-2] == "--resume" and "--huggingface_token" not in words and "--huggingface_repo_id" in words


@pytest.mark.skipif(sys.platform == "win32", reason="signals are other things there")
def test_a_second_signal_does_not_wait_for_uploads(images, hub, tmp_path):
    gate = threading.Event()
    hub.faults.append(Fault("POST .*/commit/", gate, times=99))
    env = {**os.environ, **hub.environment(tmp_path / "home")}
    process = start_command(arguments(images, tmp_path / "out", **OPTIONS, **UPLOADS), env=env)
    for line in process.stderr:
        if line.startswith("waiting for "):
            break
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(10) in (-signal.SIGINT, 130)
    gate.set()
    assert load_file(tmp_path / "out" / "run.safetensors")


def test_a_model_of_the_hub_is_checked_by_its_small_files(images, hub, tmp_path):
    """Else gigabytes are downloaded before a mistake is told, and buckets are those of another family."""
    sdxl = write_sdxl_folder(make_tiny_sdxl(), tmp_path / "sdxl")
    hub.add_folder("someone/xl", sdxl)
    hub.add_folder("someone/base", BASE)
    hub.add("someone/flux", {"model_index.json": b'{"_class_name": "FluxPipeline"}'})
    cases = [
        ("train_network.py", "xl", {"v2": True}, ["--v2 was given, but", "is Stable Diffusion XL"]),
        ("sdxl_train_network.py", "base", {}, ["someone/base is Stable Diffusion 1.x and 2.x, which sdxl_train_net"]),
        ("train_db.py", "base", {"block_lr": ",".join(["1e-5"] * 23)}, ["--block_lr is for Stable Diffusion XL"]),
        (
            "train_textual_inversion.py",
            "flux",
            {"token_string": "<x>"},
            ["someone/flux: the folder holds", "known are"],
        ),
        ("train_network.py", "none", {}, ["someone/none: neither a file or folder here nor a model on the Hub"]),
    ]
    for script, name, options, expected in cases:
        argv = arguments(images, tmp_path / "out", pretrained_model_name_or_path=f"someone/{name}", **options)
        done = run_command(argv, script, env={**os.environ, **hub.environment(tmp_path / "home")})
        assert done.returncode == 2 and done.stderr.count("error: ") == 1, done.stderr[-3000:]
        for part in expected:
            assert part in done.stderr, (script, done.stderr)
    assert hub.downloads() and not [file for file in hub.downloads() if file.endswith((".safetensors", ".bin"))]
