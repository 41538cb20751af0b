"""Short runs of the training scripts on a random model and one made image, each in a process of its own."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from benchmarks.process_memory import RETURN_FREED_MEMORY, forget_peak, peak, resident
from library.cli.launcher import is_first_process

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[1]


def make_data(folder: Path, size: int, count: int = 1) -> None:
    """Images as folders (train/1_x) and as a metadata file (meta.json), at `size` x `size`."""
    import numpy as np
    from PIL import Image

    images = folder / "train" / "1_x"
    images.mkdir(parents=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{number}.png")
    entries = {f"{number}.png": {"caption": "an image"} for number in range(count)}
    (folder / "meta.json").write_text(json.dumps(entries))


def command_line(
    script: str, flags: list[str], *, model: Path, data: Path, output: Path, size: int, num_steps: int = 2
) -> list[str]:
    """The words of a run: the script's file, and its options."""
    described = (
        ["--train_data_dir", str(data / "train" / "1_x"), "--in_json", str(data / "meta.json")]
        if script == "fine_tune"
        else ["--train_data_dir", str(data / "train")]
    )
    return [
        f"{script}.py",
        "--pretrained_model_name_or_path", str(model), *described, "--resolution", str(size), "--seed", "1",
        "--output_dir", str(output), "--max_data_loader_n_workers", "0", "--max_train_steps", str(num_steps),
        "--no_metadata", *flags,
    ]  # fmt: skip


def run(
    script: str,
    flags: list[str],
    *,
    model: Path,
    data: Path,
    output: Path,
    size: int,
    num_steps: int = 2,
    num_processes: int = 1,
    variables: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """Runs a script with some flags. Returns "seconds" (of the loop), "peak" (bytes, of all) and "loop_peak".

    "cpu" is the seconds of the CPU in the loop. "steps_peak" is that of the loop without its last save. Peaks are
    beyond what the process held before it loaded anything but libraries. Of several processes, it is all the first's.
    `variables`: of the environment. Raises `CalledProcessError`.
    """
    words = command_line(script, flags, model=model, data=data, output=output, size=size, num_steps=num_steps)
    command = launched("benchmarks.training_runs", [script, *words[1:]], num_processes)
    return json.loads(said_by(command, {**RETURN_FREED_MEMORY, **(variables or {})}).splitlines()[-1])


def said_by(command: list[str], variables: Mapping[str, str]) -> str:
    """What a command writes to its standard output. Raises `CalledProcessError`."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **variables})
    if done.returncode:
        sys.stderr.write(done.stderr[-3000:])
        done.check_returncode()
    return done.stdout


def wait_for_others() -> None:
    """Until as many processes have come here as the environment says (`together`); at once without it."""
    if "BENCHMARK_MEETING" in os.environ:
        folder, _, number = os.environ["BENCHMARK_MEETING"].rpartition(":")
        (Path(folder) / str(os.getpid())).touch()
        while len(list(Path(folder).iterdir())) < int(number):
            time.sleep(0.001)


def together(works: Sequence[Callable[[Mapping[str, str]], T]], folder: Path) -> list[T]:
    """Does works at once, each given variables for its process, by which all wait for each other before they begin.

    `folder`: a new one.
    """
    folder.mkdir()
    variables = {"BENCHMARK_MEETING": f"{folder}:{len(works)}"}
    with ThreadPoolExecutor(len(works)) as pool:
        return [each.result() for each in [pool.submit(work, variables) for work in works]]


def launched(module: str, arguments: list[str], num_processes: int) -> list[str]:
    """The command that runs a module, in several processes by PyTorch's launcher."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes), "-m"]
    return [sys.executable, "-m", *(launcher if num_processes > 1 else []), module, *arguments]


def _measure(script: str, argv: list[str]) -> dict[str, float]:
    """Trains in this process; what is imported is not counted."""
    import bitsandbytes  # noqa: F401
    import transformers.optimization  # noqa: F401

    import library.methods.adapter  # noqa: F401
    import library.methods.whole_model  # noqa: F401
    from library.training.loop.outputs import Outputs
    from library.training.loop.trainer import Trainer
    from library.training.step_plan import Position

    found: dict[str, float] = {}
    train, finish = Trainer.run, Outputs.end

    def measured(trainer: Trainer, start_at: Position) -> None:
        found["loading_peak"] = peak() - before
        forget_peak()
        wait_for_others()
        start, cpu = time.perf_counter(), time.process_time()
        train(trainer, start_at)
        found["seconds"], found["cpu"] = time.perf_counter() - start, time.process_time() - cpu
        found["loop_peak"] = peak() - before

    def finished(outputs: Outputs, position: Position) -> None:
        found["steps_peak"] = peak() - before
        finish(outputs, position)

    Trainer.run, Outputs.end = measured, finished  # the loop begins when all is loaded
    before = resident()
    forget_peak()
    importlib.import_module(script).train(argv)
    return {**found, "peak": max(found["loading_peak"], found["loop_peak"])}


if __name__ == "__main__":
    found = _measure(sys.argv[1], sys.argv[2:])
    if is_first_process():
        print(json.dumps(found))
