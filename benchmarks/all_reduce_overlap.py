"""How much of the all-reduce of gradients is done while the backward pass still runs, in two processes of one thread.

    python -m benchmarks.all_reduce_overlap [--only lora] [--steps 12] [--trace FOLDER]

The training scripts fine-tune a U-Net of SD 1.5's geometry with a fifth of its width and random weights, and a LoRA of
rank 32 on it. Steps take turns: one reduces while its backward pass runs, the next all after it, which gives the ratio.
What is hidden is counted by the clock: the start of each sum, its end as the library of the processes (gloo)
tells it, and the end of the backward pass. On a CPU the sums take the cores that the backward pass computes on,
so that hiding them saves what processes wait for each other, no more. `--trace` writes what PyTorch's profiler
records of two steps in each process, for chrome://tracing or Perfetto.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, ratio, table
from benchmarks.training_runs import command_line, launched, make_data, said_by

SIZE, WARM_UP = 64, 4
SCRIPTS = {
    "fine_tune": ("fine_tune", ["--learning_rate", "1e-5"]),
    "lora": ("train_network", ["--network_dim", "32", "--network_train_unet_only", "--learning_rate", "1e-4"]),
}
FLAGS = ["--cache_latents", "--cache_text_encoder_outputs", "--train_batch_size", "4", "--optimizer_type", "AdamW"]


@dataclass
class Sum:
    """One sum over the processes: bytes, and when it was started and done."""

    num_bytes: int
    start: float
    end: float = float("inf")


@dataclass
class Recorded:
    """What happened in a step, by the clock."""

    overlaps: bool
    begin: float
    backward_end: float = 0.0
    finish: float = 0.0  # seconds
    end: float = 0.0
    sums: list[Sum] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        reduced = sum(each.num_bytes for each in self.sums)
        early = sum(each.num_bytes for each in self.sums if each.start < self.backward_end)
        busy = _covered([(each.start, each.end) for each in self.sums])
        hidden = _covered([(each.start, min(each.end, self.backward_end)) for each in self.sums])
        return {
            "overlaps": self.overlaps, "seconds": self.end - self.begin, "finish": self.finish, "sums": len(self.sums),
            "early": early / reduced, "hidden": hidden / busy,
        }  # fmt: skip


def _covered(spans: Sequence[tuple[float, float]]) -> float:
    """The seconds in which at least one of the spans is."""
    total, reached = 0.0, 0.0
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


class Recorder:
    """Records the steps of a training in this process, every second one without overlap."""

    def __init__(self) -> None:
        self.steps: list[Recorded] = []

    def watch(self) -> None:
        from library.training.distributed import strategy
        from library.training.distributed.strategy import GradientAllReduce, Replicated
        from library.training.loop.step import Step

        make, backward, finish = Step._make, Replicated.backward, GradientAllReduce.finish

        def recorded_step(*arguments: Any) -> None:
            number = len(self.steps)
            self.steps.append(Recorded(number < WARM_UP or number % 2 == 0, time.perf_counter()))
            make(*arguments)
            self.steps[-1].end = time.perf_counter()

        def recorded_backward(replicated: Replicated, loss: Any, *, is_last: bool = False) -> None:
            backward(replicated, loss, is_last=is_last and self.steps[-1].overlaps)
            self.steps[-1].backward_end = time.perf_counter()

        def recorded_finish(reduce: GradientAllReduce) -> None:
            start = time.perf_counter()
            finish(reduce)
            self.steps[-1].finish = time.perf_counter() - start

        Step._make, Replicated.backward = recorded_step, recorded_backward
        GradientAllReduce.finish = recorded_finish
        strategy.GradientAllReduce = partial(GradientAllReduce, start=self.start_sum)

    def start_sum(self, tensor: Any) -> Callable[[], object]:
        import torch

        made = Sum(tensor.nbytes, time.perf_counter())
        self.steps[-1].sums.append(made)
        work = torch.distributed.all_reduce(tensor, async_op=True)

        def done(_: Any) -> None:
            made.end = time.perf_counter()

        told = work.get_future().then(done)

        def wait() -> None:
            work.wait()
            told.wait()

        return wait


def _measure(script: str, arguments: list[str], output: Path, trace: str) -> None:
    """Trains in this process; what it recorded goes into a file for its rank."""
    import torch

    from library.training.loop.step import Step

    recorder = Recorder()
    recorder.watch()
    rank = os.environ["RANK"]
    if trace:
        profiler = torch.profiler.profile(
            schedule=torch.profiler.schedule(wait=WARM_UP - 1, warmup=1, active=2, repeat=1),
            on_trace_ready=lambda done: done.export_chrome_trace(str(Path(trace) / f"rank{rank}.json")),
        )
        make = Step._make

        def profiled(*arguments: Any) -> None:
            make(*arguments)
            profiler.step()

        Step._make = profiled
        profiler.start()
    importlib.import_module(script).train(arguments)
    if trace:
        profiler.stop()
    facts = [step.facts() for step in recorder.steps[WARM_UP:]]
    (output / f"rank{rank}.measured").write_text(json.dumps(facts))


def measured(method: str, folder: Path, num_steps: int, trace: Path | None = None) -> list[dict[str, Any]]:
    """The facts of each step, of both processes."""
    script, flags = SCRIPTS[method]
    output = folder / method
    output.mkdir()
    places = {"model": folder / "model", "data": folder, "output": output}
    words = command_line(script, [*FLAGS, *flags], **places, size=SIZE, num_steps=num_steps + WARM_UP)
    if trace is not None:
        (trace / method).mkdir(parents=True)
    traces = "" if trace is None else str((trace / method).resolve())
    command = launched("benchmarks.all_reduce_overlap", ["--measure", script, str(output), traces, *words[1:]], 2)
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    said_by(command, threads)
    return [step for rank in range(2) for step in json.loads((output / f"rank{rank}.measured").read_text())]


def figures(num_steps: int, only: str | None = None, trace: Path | None = None) -> list[Figure]:
    from benchmarks.random_models import make_model

    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder, SIZE, count=16)
        make_model(1 / 5, [("diffusers_safetensors", "float32", folder / "model")])
        for method in [only] if only else SCRIPTS:
            steps = measured(method, folder, num_steps, trace)
            early, late = ([step for step in steps if step["overlaps"] == value] for value in (True, False))

            def of(key: str, steps: list[dict[str, Any]] = early) -> tuple[float, ...]:
                return tuple(step[key] for step in steps)

            found += [
                Figure(f"{method}: sums in a step", of("sums"), ""),
                Figure(f"{method}: bytes started before the backward pass ends", of("early"), ""),
                Figure(f"{method}: time of the sums before the backward pass ends", of("hidden"), ""),
                Figure(f"{method}: left to do after it", tuple(1000 * each for each in of("finish")), "ms"),
                Figure(f"{method}: the same without overlap", tuple(1000 * s["finish"] for s in late), "ms"),
                Figure(f"{method}: a step", tuple(1000 * each for each in of("seconds")), "ms"),
                ratio(f"{method}: a step / without overlap", of("seconds"), of("seconds", late), None),
            ]
    return found


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        script, output, trace, *arguments = sys.argv[2:]
        _measure(script, arguments, Path(output), trace)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=tuple(SCRIPTS), help="one method")
    parser.add_argument("--steps", type=int, default=12, help="of each, half of them without overlap; an even number")
    parser.add_argument("--trace", type=Path, help="new folder for what the profiler records of each process")
    options = parser.parse_args()
    print(table(figures(options.steps, options.only, options.trace)))


if __name__ == "__main__":
    main()
