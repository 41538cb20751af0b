"""If these fail, the ways in which users start training do not work, or do not learn the same."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.end_to_end.runs import ROOT, arguments, assert_same, logged, run_command, train


def launch(argv, *options, script="train_network.py", **environment):
    """`accelerate launch`, without a configuration of the machine's own."""
    start = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *options, script]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", **environment}
    done = subprocess.run([*start, *argv], capture_output=True, text=True, timeout=300, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_python_and_accelerate_launch_write_the_same_file(data_dir, tmp_path):
    done = run_command(arguments(data_dir, tmp_path / "python", max_train_steps=3))
    assert done.returncode == 0, done.stderr[-3000:]
    # it ends by saying what was written and what can be done with it
    assert str(tmp_path / "python" / "run.safetensors") in done.stderr.split("Written:")[1]
    assert "load_lora_weights" in done.stderr.split("Next:")[1]
    launch(
        arguments(data_dir, tmp_path / "launched", max_train_steps=3),
        "--cpu", "--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
    )  # fmt: skip
    assert_same(*(load_file(tmp_path / name / "run.safetensors") for name in ("python", "launched")))


@pytest.mark.slow
def test_two_processes_learn_what_one_does_with_twice_the_accumulation(data_dir, tmp_path):
    options = {"max_train_steps": 5, "cache_latents_to_disk": True, "network_dropout": 0.2}
    options |= {"ema": True, "ema_decay": 0.5, "validation_split": 0.4, "train_batch_size": 1}
    one = train(data_dir, tmp_path / "one", gradient_accumulation_steps=2, **options)
    for cache in data_dir.rglob("*_sd.npz"):
        cache.unlink()  # the two are to share the work
    done = launch(
        arguments(data_dir, tmp_path / "two", **options),
        "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
        "--dynamo_backend", "no",
    )  # fmt: skip
    assert "processes 2" in done.stderr
    two = load_file(tmp_path / "two" / "run.safetensors")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-6)
    curves = [logged(tmp_path / name, "loss/validation") for name in ("one", "two")]
    assert [step for step, _ in curves[0]] == [step for step, _ in curves[1]] == [0, 3, 5]
    assert [value for _, value in curves[1]] == pytest.approx([value for _, value in curves[0]], rel=1e-4)
    assert max(tensor.abs().max() for name, tensor in one.items() if "lora_up" in name) > 1e-3
