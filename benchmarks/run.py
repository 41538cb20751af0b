"""Runs the benchmarks that compare training with the bare computation, and writes what they find.

    python -m benchmarks.run [--rounds 5] [--only start]

Writes benchmarks/results/DATE-MACHINE.json: every figure with all its values, the commit, and versions of packages.
It takes some half an hour. What needs a GPU is marked as not run where there is none.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import (
    all_reduce_overlap,
    caching,
    data_loading,
    gpu,
    growth,
    photographs,
    processes,
    start,
    step_memory,
    step_overhead,
)
from benchmarks.figures import Figure, table

ROOT = Path(__file__).resolve().parents[1]
STEPS_PER_ROUND = 8  # where a round has both ways' steps in turns
BENCHMARKS: dict[str, Callable[[int], list[Figure]]] = {
    "start": start.figures,
    "step_overhead": lambda rounds: step_overhead.figures(rounds * STEPS_PER_ROUND),
    "step_memory": step_memory.figures,
    "processes": processes.figures,
    "all_reduce_overlap": lambda rounds: all_reduce_overlap.figures(rounds * STEPS_PER_ROUND),
    "photographs": photographs.figures,
    "data_loading": data_loading.figures,
    "caching": caching.figures,
    "growth": growth.figures,
    "gpu": gpu.figures,
}
PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "numpy", "safetensors")


def machine() -> dict[str, Any]:
    """What the figures were measured with."""
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True).stdout
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    return {
        "commit": commit.strip() + (" and changes" if changed.strip() else ""),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _measured(benchmark: str, num_rounds: int, *, is_alone: bool) -> Any:
    """Its figures as JSON, shown as a table; or why they are missing.

    Several are measured each in a process of its own: threads that one leaves change how the next scans images.
    """
    missing = gpu.why_not() if benchmark == "gpu" else None
    if is_alone or missing:
        figures = [] if missing else BENCHMARKS[benchmark](num_rounds)
        print(f"{benchmark}\n{missing or table(figures)}\n", flush=True)
        return missing or [figure.as_json() for figure in figures]
    with tempfile.TemporaryDirectory() as folder:
        words = ["--only", benchmark, "--rounds", str(num_rounds), "--results", folder]
        subprocess.run([sys.executable, "-m", "benchmarks.run", *words], cwd=ROOT, check=True)
        (result,) = Path(folder).iterdir()
        return json.loads(result.read_text())["figures"][benchmark]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rounds", type=int, default=5, help="of each figure, at least 5 for one that is shown to others"
    )
    parser.add_argument("--only", choices=tuple(BENCHMARKS), help="one of them")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder for the file")
    options = parser.parse_args()
    now, described = datetime.now(UTC), machine()
    name = f"{now:%Y-%m-%d}-{described['system'].replace(' ', '-').lower()}-{described['cores']}-cores.json"
    options.results.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    for benchmark in [options.only] if options.only else BENCHMARKS:
        found[benchmark] = _measured(benchmark, options.rounds, is_alone=options.only is not None)
        result = {"date": now.isoformat(timespec="seconds"), "machine": described, "figures": found}
        (options.results / name).write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {options.results / name}")


if __name__ == "__main__":
    main()
