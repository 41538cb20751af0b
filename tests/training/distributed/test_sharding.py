"""If these fail, a model that is sharded over processes learns something else, or cannot be resumed.

Two processes run `sharding_worker.py` and compare with a plain loop of PyTorch on the same batches: weights, norms of
gradients, optimizer state; epochs end in incomplete steps, sizes are odd, some weights are frozen.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from library.training.distributed.sharding_config import OPTIMIZERS

ROOT = Path(__file__).resolve().parents[3]
# layout -> the share of the optimizer's state, and of the weights, that each of two processes holds
SHARES = {
    "whole": 1,
    "zero2": 0.5,
    "zero3-offload": 0.5,
    "fsdp-whole": 0.5,
    "fsdp-blocks": 0.5,
    "fsdp-size": 0.5,
}


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    """What two processes found, for each layout."""
    result = tmp_path_factory.mktemp("sharding") / "result.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # accelerate would divide losses by it: they are those of a plain loop
    env["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = "4"
    for is_last in (False, True):
        done = subprocess.run(
            [*command, "tests/training/distributed/sharding_worker.py", str(result)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=env,
            timeout=300,
        )
        if is_last or "Signal 6 (SIGABRT)" not in done.stderr:
            break
        # seldom, gloo aborts a process within a collective; nothing of the worker's own raises that
        warnings.warn(f"started again after an abort: {done.stderr[:5000]}", stacklevel=1)
    assert done.returncode == 0, f"{done.stderr[:5000]} ... {done.stderr[-5000:]}"
    return json.loads(result.read_text())


@pytest.mark.parametrize("layout", SHARES)
def test_two_processes_learn_in_any_layout_what_a_plain_loop_does(found, layout):
    names = OPTIMIZERS if layout == "fsdp-blocks" else ("AdamW", "SGD")
    for name in names:
        result = found[layout][name]
        # RMSprop divides by small numbers at its first step
        loose = 100 if name == "RMSprop" else 1
        assert result["weights"] < 2e-7 * loose, name
        assert result["norms"] < 1e-6 * loose, name
        assert result["state"] < 1e-6 * loose, name  # a text says what is not alike
        assert result["resumed"], name
        assert result["resumed from one process"] < 2e-7 * loose, name
        assert result["share of state"] == pytest.approx(SHARES[layout], abs=0.06), name
        assert result["share of weights"] == pytest.approx(SHARES[layout], abs=0.06), name
    for bad in (math.nan, math.inf):
        result = found[layout][f"loss + {bad}"]
        assert result["kept"] and result["finite"] and result["weights"] < 2e-7
        assert not result["finite when broken"]  # in one process; all must know


def test_the_time_limit_reaches_the_group_of_processes(found):
    assert found["timeout"] == 7 * 60


@pytest.mark.parametrize("layout", [name for name in SHARES if "zero" in name])
def test_an_overflow_in_one_process_lowers_the_scale_of_fp16_in_both(found, layout):
    """An overflow halves the scale (the default backoff), and two steps without one double it."""
    result = found[layout]["scaled"]
    assert result["scales"] == [[2.0**10] * 2, [2.0**9] * 2, [2.0**9] * 2, [2.0**10] * 2]
    assert result["norms"] < 1e-6 and result["weights"] < 2e-7
