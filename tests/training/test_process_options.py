"""If these fail, options of several processes are lost on the way, or a run begins under a program that breaks it."""

import os
import subprocess
import sys

import pytest

from library.training.process_options import ProcessOptions, launch_problems
from tests.end_to_end.runs import ROOT, arguments, copy_pictures

REFUSED = {
    "deepspeed": True,
    "zero_stage": 2,
    "offload_optimizer_device": "cpu",
    "offload_optimizer_nvme_path": "disk",
    "offload_param_device": "nvme",
    "offload_param_nvme_path": "disk",
    "zero3_init_flag": True,
    "zero3_save_16bit_model": True,
    "fp16_master_weights_and_gradients": True,
}


@pytest.mark.parametrize("name", REFUSED)
def test_each_option_of_deepspeed_is_refused_by_name(name):
    (problem,) = ProcessOptions(**{name: REFUSED[name]}).problems()
    assert problem.message.startswith(f"--{name}: ") and "does not run under DeepSpeed" in problem.message
    assert "--optimizer_type AdamW8bit" in problem.hint


def test_all_of_them_are_refused_in_one_line():
    (problem,) = ProcessOptions(**REFUSED).problems()
    assert [name for name in REFUSED if f"--{name}" not in problem.message] == [] and "\n" not in problem.message
    assert list(ProcessOptions(ddp_timeout=3, ddp_static_graph=True, ddp_gradient_as_bucket_view=True).problems()) == []


@pytest.mark.parametrize(
    ("variable", "name"), [("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")]
)
def test_accelerate_configured_for_another_way_is_refused(variable, name):
    """The variables are those that `accelerate launch` sets by --use_fsdp, --use_deepspeed or its configuration."""
    (problem,) = launch_problems({variable: "true"})
    assert f"does not run under {name}" in problem.message
    assert list(launch_problems({variable: "false"})) == []


@pytest.mark.parametrize(
    ("options", "variables", "refusal"),
    [
        ({"zero_stage": 3, "deepspeed": True}, {}, "error: --deepspeed, --zero_stage: this program sums gradients"),
        ({}, {"ACCELERATE_USE_FSDP": "true"}, "error: accelerate is configured for FSDP"),
    ],
)
def test_the_refusal_is_all_that_happens(tmp_path, options, variables, refusal):
    argv = arguments(copy_pictures(tmp_path / "pictures"), tmp_path / "output", **options)
    command = [sys.executable, "train_db.py", *argv]
    env = {**os.environ, **variables}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=60)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].startswith(refusal) and len(done.stderr.splitlines()) == 2
    assert not (tmp_path / "output").exists()


def test_the_time_limit_reaches_the_group_of_processes():
    program = """
import torch
from library.training.precision import make_accelerator
make_accelerator("no", timeout_minutes=7)
group = torch.distributed.distributed_c10d._get_default_group()
print(group._get_backend(torch.device("cpu")).options._timeout.total_seconds())
"""
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=120)
    assert done.stdout.split() == ["420.0"], done.stderr[-2000:]
