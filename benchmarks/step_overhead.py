"""A training step of each method beside a loop of PyTorch, Diffusers and Transformers with the same model and batch.

    python -m benchmarks.step_overhead [--only lora] [--model tiny] [--steps 40]

Both take turns, step by step, in one process of one thread, so that other work on the machine slows both. Medians of
the CPU's milliseconds are shown. Latents are ready, and so are the text encoder's outputs where it is frozen. A step of
the trainer is all of it: batch, checks, progress bar, curves. The models: the quickstart's ("tiny"), and one of
SD 1.5's geometry with a third of its width, about 100 million parameters in the U-Net, and random weights ("100m").
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.training_runs import ROOT, command_line, make_data

TINY = ROOT / "examples" / "quickstart" / "base"
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
    """Trains in this process, with a bare step after each step. Prints medians of both in seconds, as JSON."""
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
    data = Path(folder)
    words = command_line(script, [*LATENTS_READY, *flags], model=Path(model), data=data, output=data / "out", size=SIZE)
    words[words.index("--max_train_steps") + 1] = str(num_steps + WARM_UP)
    importlib.import_module(script).train(words[1:])
    print(json.dumps({name: statistics.median(each[WARM_UP:]) for name, each in seconds.items()}))


def measured(method: str, model: Path, num_steps: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder), SIZE, count=8)
        words = [
            sys.executable,
            "-m",
            "benchmarks.step_overhead",
            "--measure",
            method,
            str(model),
            str(num_steps),
            folder,
        ]
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **threads})
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        method, model, num_steps, folder = sys.argv[2:]
        _measure(method, model, int(num_steps), folder)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=tuple(SCRIPTS), help="one method")
    parser.add_argument("--model", choices=("tiny", "100m"), help="one model")
    parser.add_argument("--steps", type=int, default=40, help="of each, for each model and method")
    options = parser.parse_args()
    print(f"{'':20}{'model':>8}{'trainer, ms':>14}{'bare, ms':>12}{'ratio':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for name in [options.model] if options.model else ["tiny", "100m"]:
            model = TINY if name == "tiny" else _make_large(Path(folder))
            for method in [options.only] if options.only else SCRIPTS:
                found = measured(method, model, options.steps)
                trainer, bare = 1000 * found["trainer"], 1000 * found["bare"]
                print(f"{method:20}{name:>8}{trainer:14.1f}{bare:12.1f}{trainer / bare:8.3f}", flush=True)


def _make_large(folder: Path) -> Path:
    from benchmarks.random_models import make_model

    make_model(1 / 3, [("diffusers_safetensors", "float32", folder / "model")])
    return folder / "model"


if __name__ == "__main__":
    main()
