"""Seconds from a command to its answer: `--help`, a mistake, and the first step of a training with its file saved.

    python -m benchmarks.start

A mistake and `--help` stand beside an interpreter that starts and ends; the training of one step beside the same by
PyTorch, Diffusers and Transformers alone (`bare_step.py`). The commands take turns; shown are medians over `--rounds`,
on the clock and of the CPU in all threads, which says more on a machine that does other work.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "quickstart"
PAIRS = {"--help": "python", "a mistake": "python", "one step": "one bare step"}


def commands(folder: Path) -> dict[str, tuple[list[str], int]]:
    """Words behind the interpreter's name, and the exit status that is expected."""
    model, image = str(EXAMPLE / "base"), EXAMPLE / "images" / "fox_01.png"
    data = folder / "data" / "1_fox"
    data.mkdir(parents=True)
    (data / image.name).write_bytes(image.read_bytes())
    train = [
        "train_network.py", "--pretrained_model_name_or_path", model, "--train_data_dir", str(data.parent),
        "--resolution", "64", "--max_train_steps", "1", "--output_dir", str(folder / "output"), "--network_dim", "4",
        "--network_train_unet_only", "--max_data_loader_n_workers", "0", "--learning_rate", "1e-4", "--overwrite",
    ]  # fmt: skip
    return {
        "python": (["-c", "pass"], 0),
        "--help": (["train_network.py", "--help"], 0),
        "a mistake": ([*train, "--learning_rat", "1"], 2),
        "one bare step": (["benchmarks/bare_step.py", model, str(image), str(folder / "bare.safetensors")], 0),
        "one step": (train, 0),
    }


def seconds_of(words: list[str], status: int) -> tuple[float, float]:
    """Of one process: on the clock, and of the CPU."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    variables = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=variables, capture_output=True, text=True)
    clock, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != status:
        sys.exit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return clock, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(num_rounds: int) -> dict[str, tuple[float, float]]:
    """Medians by name, after a round that is not counted, which fills the caches of files."""
    with tempfile.TemporaryDirectory() as name:
        measured = commands(Path(name))
        rounds = [{key: seconds_of(*command) for key, command in measured.items()} for _ in range(num_rounds + 1)][1:]
    return {
        key: (statistics.median(one[key][0] for one in rounds), statistics.median(one[key][1] for one in rounds))
        for key in measured
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    medians = measure(parser.parse_args().rounds)
    print(f"{'':16}{'clock':>8}{'CPU':>8}{'ratio of clock':>17}{'of CPU':>9}")
    for name, (clock, cpu) in medians.items():
        beside = medians.get(PAIRS.get(name, ""))
        ratios = f"{clock / beside[0]:17.2f}{cpu / beside[1]:9.2f}" if beside else ""
        print(f"{name:16}{clock:8.2f}{cpu:8.2f}{ratios}")


if __name__ == "__main__":
    main()
