"""If these fail, a model that is shared out over processes learns something else, or cannot be taken up again.

Two processes run `sharding_worker.py` and compare with a plain loop of PyTorch on the same batches: weights, norms of
gradients, optimizer state; epochs end in incomplete steps, sizes are odd, some weights stay as they are.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from library.training.distributed.plans import OPTIMIZERS

ROOT = Path(__file__).resolve().parents[3]
needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed")
# layout -> the share of the optimizer's state, and of the weights, that each of two processes holds
SHARES = {
    "whole": (1, 1),
    "zero1": (0.5, 1),
    "zero2": (0.5, 1),
    "zero2-offload": (0.5, 1),
    "zero3": (0.5, 0),  # DeepSpeed keeps its part elsewhere
    "zero3-offload": (0.5, 0),
    "fsdp-whole": (0.5, 0.5),
    "fsdp-blocks": (0.5, 0.5),
    "fsdp-size": (0.5, 0.5),
    "fsdp-offload": (0.5, 0.5),
}
QUICK = ("whole", "zero2", "zero3", "fsdp-blocks")


def run_worker(layout: str, result: Path) -> dict:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "tests/training/distributed/sharding_worker.py", layout, str(result)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=env,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads(result.read_text())


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(
            layout,
            marks=([] if layout in QUICK else [pytest.mark.slow]) + ([needs_deepspeed] if "zero" in layout else []),
        )
        for layout in SHARES
    ],
)
def test_two_processes_learn_in_any_layout_what_a_plain_loop_does(tmp_path, layout):
    found = run_worker(layout, tmp_path / "result.json")
    of_state, of_weights = SHARES[layout]
    for name in OPTIMIZERS:
        result = found[name]
        # RMSprop divides by small numbers at its first step
        loose = 100 if name == "RMSprop" else 1
        assert result["weights"] < 2e-7 * loose, name
        assert result["norms"] < 1e-6 * loose, name
        assert result["state"] < 1e-6 * loose, name  # a text says what is not alike
        assert result["resumed"], name
        assert result["share of state"] == pytest.approx(of_state, abs=0.06), name
        assert result["share of weights"] == pytest.approx(of_weights, abs=0.06), name
    for bad in (math.nan, math.inf):
        result = found[f"loss + {bad}"]
        assert result["kept"] and result["finite"] and result["weights"] < 2e-7
        assert not result["finite when broken"]  # in one process; all must know
