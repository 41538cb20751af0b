"""Training on a GPU beside a bare loop: images per second, peak of the allocator, waits for the device in a step.

    python -m benchmarks.gpu [--size 512] [--batch_size 4] [--only "lora, bf16"]

On a model of SD 1.5's geometry with random weights, in bf16, latents and text encoder outputs ready; each row in a
process of its own. Where there is no GPU it says so and ends. `--cpu` runs the same on the CPU: a way to see that the
benchmark itself works, with `--share 0.1 --size 64`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, ratio, table
from benchmarks.training_runs import ROOT, command_line, make_data

WARM_UP, STEPS_PER_ROUND, PROFILED = 5, 6, 3
_LORA = ("train_network", ["--network_dim", "4", "--network_train_unet_only", "--learning_rate", "1e-4"])
_FULL = ("fine_tune", ["--learning_rate", "1e-5"])
_READY = ["--cache_latents", "--cache_text_encoder_outputs", "--mixed_precision", "bf16", "--optimizer_type", "AdamW"]
ROWS: dict[str, tuple[str, list[str]]] = {
    "lora, bf16": _LORA,
    "lora, bf16, torch_compile": (_LORA[0], [*_LORA[1], "--torch_compile"]),
    "lora, bf16, gradient_checkpointing": (_LORA[0], [*_LORA[1], "--gradient_checkpointing"]),
    "lora, bf16, xformers": (_LORA[0], [*_LORA[1], "--xformers"]),
    "full, bf16": _FULL,
    "full, bf16, torch_compile": (_FULL[0], [*_FULL[1], "--torch_compile"]),
    "full, bf16, gradient_checkpointing": (_FULL[0], [*_FULL[1], "--gradient_checkpointing"]),
}
BARE = {"train_network": "lora", "fine_tune": "fine_tune"}


class Meter:
    """Times rounds of steps on a device, after some that warm it up, and counts waits for it in a few more."""

    def __init__(self, num_rounds: int):
        import torch

        self._last_timed = WARM_UP + num_rounds * STEPS_PER_ROUND
        self.num_steps = self._last_timed + PROFILED
        self._cuda = torch.cuda if torch.cuda.is_available() else None
        self._count = 0
        self._start = 0.0
        self._profile: Any = None
        self.found: dict[str, Any] = {"seconds": [], "waits": 0.0, "peak": 0.0}

    def after_step(self) -> None:
        """To be called after each of `num_steps` steps."""
        import torch

        self._count += 1
        if self._count == WARM_UP:
            if self._cuda:
                self._cuda.synchronize()
                self._cuda.reset_peak_memory_stats()
            self._start = time.perf_counter()
        elif WARM_UP < self._count <= self._last_timed and (self._count - WARM_UP) % STEPS_PER_ROUND == 0:
            self._end_round()
            if self._count == self._last_timed and self._cuda:
                self.found["peak"] = self._cuda.max_memory_allocated()
                self._profile = torch.profiler.profile()
                self._profile.start()
        elif self._count == self.num_steps and self._profile is not None:
            self._profile.stop()
            names = [event.name for event in self._profile.events()]
            self.found["waits"] = sum("Synchronize" in name for name in names) / PROFILED

    def _end_round(self) -> None:
        if self._cuda:
            self._cuda.synchronize()
        now = time.perf_counter()
        self.found["seconds"].append((now - self._start) / STEPS_PER_ROUND)
        self._start = now


def _measure_trainer(script: str, argv: list[str], meter: Meter) -> None:
    from library.training.loop.outputs import Outputs
    from library.training.step_plan import Position

    after_step = Outputs.after_step

    def measured(outputs: Outputs, position: Position) -> None:
        after_step(outputs, position)
        meter.after_step()

    Outputs.after_step = measured
    importlib.import_module(script).train(argv)


def _measure_bare(method: str, options: argparse.Namespace, model: Path, meter: Meter) -> None:
    import torch

    from benchmarks.bare_loop import make_bare_step

    device = "cpu" if options.cpu else "cuda"
    step: Callable[[], None] = make_bare_step(method, model, options.batch_size, options.size, device, torch.bfloat16)
    for _ in range(meter.num_steps):
        step()
        meter.after_step()


def _in_process(options: argparse.Namespace, row: str, *, bare: bool, folder: Path) -> dict[str, Any]:
    """What `Meter` found; of a row that failed, "failure"."""
    own = ["--row", row, "--folder", str(folder), *(["--bare"] if bare else []), *(["--cpu"] if options.cpu else [])]
    sizes = [f"--{name}={getattr(options, name)}" for name in ("size", "batch_size", "rounds")]
    words = [sys.executable, "-m", "benchmarks.gpu", *own, *sizes]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        return {"failure": (done.stderr.strip().splitlines() or ["failed"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def _run_row(options: argparse.Namespace) -> None:
    """In a process of its own: prints what was found as JSON."""
    script, flags = ROWS[options.row]
    model, meter = options.folder / "model", Meter(options.rounds)
    if options.bare:
        _measure_bare(BARE[script], options, model, meter)
    else:
        words = command_line(
            script, [*_READY, *flags, "--train_batch_size", str(options.batch_size)], model=model, data=options.folder,
            output=options.folder / "out" / options.row.replace(", ", "_"), size=options.size,
            num_steps=meter.num_steps,
        )  # fmt: skip
        _measure_trainer(script, words[1:], meter)
    print(json.dumps(meter.found))


def why_not() -> str | None:
    """What keeps this machine from being measured."""
    import torch

    return None if torch.cuda.is_available() else "not run: there is no GPU, or PyTorch is built without CUDA"


def figures(num_rounds: int) -> list[Figure]:
    """Of all rows, at the sizes of the command's defaults."""
    return _figures(_parser().parse_args(["--rounds", str(num_rounds)]))


def _figures(options: argparse.Namespace) -> list[Figure]:
    from benchmarks.random_models import make_model

    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(options.share, [("diffusers_safetensors", "float32", folder / "model")])
        make_data(folder, options.size, count=4 * options.batch_size)
        for row in [options.only] if options.only else ROWS:
            ours, bare = (_in_process(options, row, bare=is_bare, folder=folder) for is_bare in (False, True))
            if "failure" in ours or "failure" in bare:
                print(f"{row}: {ours.get('failure') or bare['failure']}")
                continue
            speeds = [[options.batch_size / seconds for seconds in each["seconds"]] for each in (ours, bare)]
            found += [Figure(row, tuple(speeds[0]), "images/s"), ratio(f"{row} / bare", *speeds, None)]
            found.append(Figure(f"{row}, waits for the device", (ours["waits"],), "a step"))
            if bare["peak"]:
                found.append(Figure(f"{row}, peak", (ours["peak"] / 2**30,), "GiB"))
                found.append(Figure(f"{row}, peak / bare", (ours["peak"] / bare["peak"],)))
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="width of the model, 1 for that of SD 1.5")
    parser.add_argument("--size", type=int, default=512, help="width and height of the images")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5, help=f"each of {STEPS_PER_ROUND} steps")
    parser.add_argument("--only", choices=tuple(ROWS), help="one row")
    parser.add_argument("--cpu", action="store_true", help="on the CPU")
    for name, kind in (("--row", str), ("--folder", Path)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    options = _parser().parse_args()
    if options.row:
        _run_row(options)
        return
    missing = None if options.cpu else why_not()
    print(missing or table(_figures(options)))


if __name__ == "__main__":
    main()
