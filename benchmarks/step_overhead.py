"""A training step of each method beside a loop of PyTorch, Diffusers and Transformers with the same model and batch.

    python -m benchmarks.step_overhead [--only lora] [--model tiny] [--steps 40]

Both take turns, step by step, in one process of one thread, so that other work on the machine slows both. Times are of
the CPU; a ratio is of a step and the bare one after it. Latents are ready, as are outputs of a frozen text encoder.
A step of the trainer is all of it: batch, checks, progress bar, curves. The models: the quickstart's ("tiny"), and one
of SD 1.5's geometry with a third of its width, about 100 million parameters in the U-Net, random weights ("100m").
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.commands import BASE
from benchmarks.figures import Figure, ratio, table
from benchmarks.training_runs import ROOT, command_line, make_data

TARGETS = {"tiny": 1.10, "100m": 1.03}  # of the ratio, by model
SIZE, BATCH, WARM_UP = 64, 2, 5
LATENTS_READY = ["--cache_latents", "--train_batch_size", str(BATCH), "--optimizer_type", "AdamW"]
SCRIPTS = {
    "lora": (
        "train_network",
        ["--network_dim", "4", "--network_train_unet_only", "--cache_text_encoder_outputs", "--learning_rate", "1e-4"],
    ),
    "fine_tune": ("fine_tune", ["--cache_text_encoder_outputs", "--learning_rate", "1e-5"]),
    "textual_inversion": (
        "train_textual_inversion",
        ["--token_string", "<shs>", "--init_word", "fox", "--use_object_template", "--learning_rate", "5e-3"],
    ),
}


def _measure(method: str, model: str, num_steps: int, folder: str) -> None:
    """Trains in this process, with a bare step after each step. Prints the seconds of both as JSON."""
    from benchmarks.bare_loop import make_bare_step
    from library.training.loop.outputs import Outputs
    from library.training.step_plan import Position

    script, flags = SCRIPTS[method]
    bare_step: Callable[[], None] | None = None
    seconds: dict[str, list[float]] = {"trainer": [], "bare": []}
    mark, after_step = 0.0, Outputs.after_step

    def in_turn(outputs: Outputs, position: Position) -> None:
        nonlocal bare_step, mark
        after_step(outputs, position)
        seconds["trainer"].append(time.process_time() - mark)
        bare_step = bare_step or make_bare_step(method, Path(model), BATCH, SIZE)
        start = time.process_time()
        bare_step()
        mark = time.process_time()
        seconds["bare"].append(mark - start)

    Outputs.after_step = in_turn
    data, flags = Path(folder), [*LATENTS_READY, *flags]
    places = {"model": Path(model), "data": data, "output": data / "out"}
    words = command_line(script, flags, **places, size=SIZE, num_steps=num_steps + WARM_UP)
    importlib.import_module(script).train(words[1:])
    print(json.dumps({name: each[WARM_UP:] for name, each in seconds.items()}))


def measured(method: str, model: Path, num_steps: int) -> dict[str, list[float]]:
    """Seconds of the CPU, of each step of the trainer and of the bare loop."""
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder), SIZE, count=8)
        arguments = ["--measure", method, str(model), str(num_steps), folder]
        words = [sys.executable, "-m", "benchmarks.step_overhead", *arguments]
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **threads})
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def figures(num_steps: int, only: str | None = None, model: str | None = None) -> list[Figure]:
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name in [model] if model else TARGETS:
            path = BASE if name == "tiny" else _make_large(Path(folder))
            for method in [only] if only else SCRIPTS:
                seconds = measured(method, path, num_steps)
                title = f"{method}, {name}"
                found.append(Figure(f"{title}: a step", tuple(1000 * each for each in seconds["trainer"]), "ms"))
                found.append(ratio(f"{title}: / bare", seconds["trainer"], seconds["bare"], TARGETS[name]))
    return found


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        method, model, num_steps, folder = sys.argv[2:]
        _measure(method, model, int(num_steps), folder)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=tuple(SCRIPTS), help="one method")
    parser.add_argument("--model", choices=tuple(TARGETS), help="one model")
    parser.add_argument("--steps", type=int, default=40, help="of each, for each model and method")
    options = parser.parse_args()
    print(table(figures(options.steps, options.only, options.model)))


def _make_large(folder: Path) -> Path:
    from benchmarks.random_models import make_model

    make_model(1 / 3, [("diffusers_safetensors", "float32", folder / "model")])
    return folder / "model"


if __name__ == "__main__":
    main()
