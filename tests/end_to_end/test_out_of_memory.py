"""If this fails, a run that does not fit into memory ends in a traceback instead of what to do about it."""

import sys

import pytest

from library.run_report.record import read_page
from tests import programs
from tests.end_to_end.runs import arguments

# the address space is limited once the model is there, so that a large batch does not fit
LIMITED = """
import resource, sys
import library.training.loop.step as step
real = step.make_optimizer
def limited(*args):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 150_000_000, resource.RLIM_INFINITY))
    return real(*args)
step.make_optimizer = limited
import {script}
from library.cli.entry import run_entry
sys.exit(run_entry(lambda: {script}.train(sys.argv[1:])))
"""


def train_limited(script, argv):
    done = programs.run(["-c", LIMITED.format(script=script), *argv])
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-3000:]
    assert "there is not enough memory for this run" in done.stderr
    return done.stderr.split("the cheapest first: ")[1]


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory work otherwise")
def test_the_flags_that_would_help_are_named(data_dir, tmp_path):
    argv = arguments(
        data_dir, tmp_path, resolution=512, min_bucket_reso=512, max_bucket_reso=1024, train_batch_size=4,
        gradient_checkpointing=True, cache_latents=True, no_run_report=None,
    )  # fmt: skip
    said = train_limited("train_network", argv)
    assert "--mixed_precision bf16, --optimizer_type AdamW8bit, a smaller batch size" in said
    assert "--gradient_checkpointing" not in said and "--cache_latents" not in said  # these are in use
    ending = read_page(tmp_path / "run-run.html").record.ending
    assert ending.kind == "out of memory" and "--mixed_precision bf16" in ending.hint


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory work otherwise")
def test_with_sharding_what_more_can_be_sharded_and_offloaded_is_named(data_dir, tmp_path):
    argv = arguments(
        data_dir, tmp_path, resolution=512, min_bucket_reso=512, max_bucket_reso=1024, train_batch_size=4,
        cache_latents=True, deepspeed=True, zero_stage=2,
    )  # fmt: skip
    said = train_limited("train_db", argv)
    assert "a smaller resolution, --zero_stage 3, --offload_optimizer_device cpu" in said
    assert "AdamW8bit" not in said  # it cannot be sharded
