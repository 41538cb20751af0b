"""If these fail, who trains with several processes reads pages of tracebacks that do not say what was wrong."""

import sys
from dataclasses import replace

import pytest
from accelerate.commands.launch import launch_command_parser
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from library.cli.entry import run_entry
from library.cli.errors import LostProcess, Stopped, UserError, UserErrors
from library.cli.launcher import launch_command


@pytest.fixture
def failure_of(tmp_path, monkeypatch):
    """What PyTorch's launcher reads of a process that runs this work and fails."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))

    def fail(error):
        def work():
            raise error

        try:
            status = run_entry(work)
        except type(error):
            status = 1
        return ProcessFailure(local_rank=1, pid=12, exitcode=status, error_file=str(tmp_path / "error.json"))

    return fail


def end_of_report(*failures):
    """What PyTorch's launcher says last."""
    report = str(ChildFailedError("train.py", {failure.local_rank: failure for failure in failures}))
    return report[report.rindex("Root Cause") :]


def test_the_launcher_reads_what_the_user_can_mend(failure_of):
    failure = failure_of(UserErrors([UserError("--a is wrong", "give --b"), UserError("--c is wrong")]))
    assert failure.exitcode == 2
    end = end_of_report(failure)
    assert [line for line in ("error: --a is wrong", "  give --b", "error: --c is wrong") if line not in end] == []


def test_the_launcher_reads_the_traceback_of_anything_else(failure_of):
    assert "OSError: [Errno 28] No space left" in end_of_report(failure_of(OSError(28, "No space left")))


def test_a_process_that_lost_another_is_not_the_cause(failure_of):
    lost = replace(failure_of(LostProcess("another process has ended")), local_rank=0)
    assert "another process has ended" in end_of_report(lost)  # where it is the only one of its machine
    assert "the disk is full" in end_of_report(lost, failure_of(UserError("the disk is full")))


def test_only_the_process_that_saves_says_how_to_go_on(failure_of, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "--seed", "3"])
    assert failure_of(Stopped(15, None)).exitcode == 143
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    failure_of(Stopped(15, "out/run-state"))
    line = "To resume: accelerate launch --multi_gpu --num_processes 2 train.py --seed 3 --resume out/run-state\n"
    assert capsys.readouterr().err == f"stopped by SIGTERM. {line}"


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        (
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
            {"use_deepspeed": True, "zero_stage": 3, "use_fsdp": False},
        ),
        (
            {
                "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP",
                "FSDP_MIN_NUM_PARAMS": "100000", "FSDP_OFFLOAD_PARAMS": "true",
            },
            {
                "use_fsdp": True, "fsdp_version": "2", "fsdp_auto_wrap_policy": "SIZE_BASED_WRAP",
                "fsdp_min_num_params": 100000, "fsdp_offload_params": "true", "use_deepspeed": False,
            },
        ),
        ({}, {"multi_gpu": True}),
    ],
)  # fmt: skip
def test_the_command_to_go_on_shards_as_the_launcher_was_told_to(monkeypatch, variables, wanted):
    """Read by accelerate's own parser; the variables are those that its launcher sets."""
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", **variables}.items():
        monkeypatch.setenv(name, value)
    command = launch_command()
    assert command[:2] == ["accelerate", "launch"]
    read = vars(launch_command_parser().parse_args([*command[2:], "train_db.py"]))
    assert read["num_processes"] == 2 and {name: read[name] for name in wanted} == wanted
