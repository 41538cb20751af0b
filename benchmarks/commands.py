"""Commands that are measured as whole processes: seconds on the clock, of the CPU in all threads, and peak memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "examples" / "quickstart" / "base"
IMAGE = ROOT / "examples" / "quickstart" / "images" / "fox_01.png"


@dataclass(frozen=True)
class Command:
    """Words behind the interpreter's name, and the exit status that is expected."""

    words: list[str]
    status: int = 0


@dataclass(frozen=True)
class Cost:
    clock: float  # seconds
    cpu: float  # seconds
    peak: float  # bytes resident


def cost_of(command: Command, output: Path) -> Cost:
    """Runs a command in one thread, with what it says in a file of the folder `output`. Unix only."""
    variables = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    variables.pop("PYTHONDONTWRITEBYTECODE", None)  # the modules as Python keeps them: compiled
    said, start = output / "said.txt", time.perf_counter()
    with said.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, *command.words], cwd=ROOT, env=variables, stdout=stream, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != command.status:
        sys.exit(f"{' '.join(command.words)} ended with {process.returncode}:\n{said.read_text()[-3000:]}")
    return Cost(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def costs_in_turns(commands: Mapping[str, Command], num_rounds: int, output: Path) -> dict[str, list[Cost]]:
    """Of each command in each round, after a round that is not counted, which fills the caches of files."""
    rounds = [{name: cost_of(command, output) for name, command in commands.items()} for _ in range(num_rounds + 1)]
    return {name: [each[name] for each in rounds[1:]] for name in commands}


def lora_step(model: Path, folder: Path) -> Command:
    """A training of one step on one image, and its file saved in the folder."""
    data = folder / "data" / "1_fox"
    data.mkdir(parents=True)
    (data / IMAGE.name).write_bytes(IMAGE.read_bytes())
    return Command([
        "train_network.py", "--pretrained_model_name_or_path", str(model), "--train_data_dir", str(data.parent),
        "--resolution", "64", "--max_train_steps", "1", "--output_dir", str(folder / "output"), "--network_dim", "4",
        "--network_train_unet_only", "--max_data_loader_n_workers", "0", "--learning_rate", "1e-4", "--overwrite",
    ])  # fmt: skip


def bare_lora_step(model: Path, folder: Path) -> Command:
    """The same by PyTorch, Diffusers and Transformers alone."""
    return Command(["benchmarks/bare_step.py", str(model), str(IMAGE), str(folder / "bare.safetensors")])
