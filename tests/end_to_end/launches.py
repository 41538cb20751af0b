"""Runs by `accelerate launch`, without a configuration of the machine's own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from tests.end_to_end.runs import ROOT

TWO_PROCESSES = (
    "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
)  # fmt: skip


def start(argv, *options, script="train_network.py", **environment):
    """A process of the launcher, on a port of its own: tests run beside each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        options = (*options, "--main_process_port", str(free.getsockname()[1]))
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *options, script, *argv]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", **environment}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=env)


def ended(process):
    """What a launched run has said, when it ends; one that hangs fails here."""
    try:
        _, said = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.kill()  # its processes notice
        raise
    return said


def launch(argv, *options, script="train_network.py"):
    """What a run that ends well has said."""
    process = start(argv, *options, script=script)
    said = ended(process)
    assert process.returncode == 0, said[-3000:]
    return said
