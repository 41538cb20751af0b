"""If these fail, somebody who stops a run, or whose machine is shut down, loses what it has learned."""

import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from tests import programs
from tests.end_to_end.runs import ROOT, arguments, assert_same, copy_images, logged, start_command, train

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are other things there")
STEPS = 24


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return copy_images(tmp_path_factory.mktemp("images") / "data")


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    return train(images, tmp_path_factory.mktemp("whole"), **OPTIONS)


OPTIONS = {"max_train_steps": STEPS, "save_every_n_steps": 3}


def wait_for(path, process):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("number", "send", "num_workers", "status"),
    [(signal.SIGTERM, os.killpg, 2, 143), (signal.SIGINT, os.kill, 0, 130), (signal.SIGHUP, os.kill, 0, 129)],
)
def test_a_signal_saves_and_says_how_to_go_on(images, whole, tmp_path, number, send, num_workers, status):
    """One to the process group, as `timeout` and Slurm send it, comes to the dataloader's workers too."""
    process = start_command(arguments(images, tmp_path, **OPTIONS | {"max_data_loader_n_workers": num_workers}))
    wait_for(tmp_path / "run-step00000003.safetensors", process)
    send(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == status and "Traceback" not in said, said[-2000:]
    (state,) = tmp_path.glob("run-step*-state")
    assert state.with_name(f"{state.name.removesuffix('-state')}.safetensors").exists()
    last = said.strip().splitlines()[-1]
    assert last.startswith(f"stopped by {signal.Signals(number).name}. To resume: python")
    assert int(state.name[8:16]) < STEPS and not (tmp_path / "run.safetensors").exists()
    words = shlex.split(last.split("To resume: ")[1])
    done = programs.run(words[1:])
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same(load_file(tmp_path / "run.safetensors"), whole)
    assert sorted(step for step, _ in logged(tmp_path)) == list(range(1, STEPS + 1))


def test_a_signal_without_a_state(images, tmp_path):
    argv = arguments(images, tmp_path, **OPTIONS)
    process = start_command([*argv, "--no-save_state_on_signal"])
    wait_for(tmp_path / "run-step00000003.safetensors", process)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143 and "No state was saved" in said
    assert not list(tmp_path.glob("*-state")) and list(tmp_path.glob("run-step*.safetensors"))


def test_a_second_signal_ends_at_once(images, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox --w 64 --h 64 --s 1\n" + "a fox --w 64 --h 64 --s 900\n" * 20)  # minutes of drawing
    argv = arguments(images, tmp_path, **OPTIONS, sample_prompts=prompts, sample_every_n_steps=4)
    process = start_command(argv)
    wait_for(tmp_path / "sample", process)
    while not list((tmp_path / "sample").glob("*.png")):
        time.sleep(0.02)
    process.terminate()  # at the second image
    process.terminate()  # `timeout` sends it to the process and to its group
    time.sleep(1.2)
    assert process.poll() is None
    process.terminate()
    process.communicate(timeout=10)
    assert process.returncode == -signal.SIGTERM
    assert not list(tmp_path.glob(".run*")), "nothing half made"


@pytest.mark.skipif(signal.getsignal(signal.SIGINT) is signal.SIG_IGN, reason="whoever started the tests ignores it")
def test_a_signal_before_training_ends_at_once(images, tmp_path):
    # a start of Python itself: it is at its imports
    command = [sys.executable, "train_network.py", *arguments(images, tmp_path, **OPTIONS)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode in (130, -signal.SIGINT)
    assert not any(name.startswith("run") for name in os.listdir(tmp_path))
