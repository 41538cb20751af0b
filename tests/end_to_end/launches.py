"""Runs by `accelerate launch`, without a configuration of the machine's own."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

from tests import programs

TWO_PROCESSES = (
    "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
)  # fmt: skip


def start(argv, *options, script="train_network.py", **environment):
    """A process of the launcher, in a group and on a port of its own: tests run beside each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        options = (*options, "--main_process_port", str(free.getsockname()[1]))
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", **environment}
    return programs.start(["-m", programs.LAUNCHER, "launch", *options, script, *argv], env=env)


def ended(process):
    """What a launched run has said, when it ends; one that hangs fails here."""
    try:
        _, said = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.kill()  # its processes notice
        raise
    return said


def launch(argv, *options, script="train_network.py", **environment):
    """What a run that ends well has said."""
    process = start(argv, *options, script=script, **environment)
    said = ended(process)
    assert process.returncode == 0, said[-3000:]
    return said


def stand_in_for_deepspeed(folder: Path) -> dict[str, str]:
    """Variables with which `accelerate launch --use_deepspeed` starts without the package deepspeed.

    The launcher looks for the package before our code starts. Importing it in a process of the run ends that.
    """
    package = folder / "deepspeed"
    (package / "launcher").mkdir(parents=True)
    only_launcher = "import sys\nassert 'accelerate_cli' in sys.argv[0], 'a run imports deepspeed'\n"
    (package / "__init__.py").write_text(only_launcher)
    (package / "launcher" / "__init__.py").touch()
    (package / "launcher" / "runner.py").write_text("DEEPSPEED_ENVIRONMENT_NAME = '.deepspeed_env'\n")
    metadata = folder / "deepspeed-0.19.8.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: deepspeed\nVersion: 0.19.8\n")
    return {"PYTHONPATH": str(folder)}
