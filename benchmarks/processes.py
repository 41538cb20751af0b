"""Images per second of two processes of one thread against one process of one thread: a LoRA, and captioning by BLIP.

    python -m benchmarks.processes [--only lora] [--rounds 5] [--steps 60]

One, two, and two that know nothing of each other take turns. Steps alone are timed, and captions behind the first
batch. Two independent ones are what the machine allows, since processes share its memory, caches and clock: against
them, two lose what they wait for each other and say to each other. How much of a core the first one has is shown too:
below 1 it waits, or other work takes the cores, which should do nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from benchmarks.commands import BASE
from benchmarks.figures import Figure, ratio, table
from benchmarks.training_runs import launched, make_data, run, said_by, together, wait_for_others

THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
LORA_BATCH, CAPTION_BATCH = 8, 2
LORA_FLAGS = [
    "--cache_latents", "--train_batch_size", str(LORA_BATCH), "--network_dim", "4", "--learning_rate", "1e-4",
    "--network_train_unet_only", "--cache_text_encoder_outputs",
]  # fmt: skip
# (new folder in that of the data, number of processes, variables of their environment) -> images a second of all, and
# seconds of the CPU for a second of the clock in the first
Work = Callable[[Path, int, Mapping[str, str]], tuple[float, float]]


def train_lora(num_steps: int, folder: Path, num_processes: int, variables: Mapping[str, str]) -> tuple[float, float]:
    found = run(
        "train_network", LORA_FLAGS, model=BASE, data=folder.parent, output=folder, size=64, num_steps=num_steps,
        num_processes=num_processes, variables={**THREADS, **variables},
    )  # fmt: skip
    return LORA_BATCH * num_processes * num_steps / found["seconds"], found["cpu"] / found["seconds"]


def write_captions(
    num_images: int, folder: Path, num_processes: int, variables: Mapping[str, str]
) -> tuple[float, float]:
    """`num_images`: of each process, behind its first batch."""
    make_data(folder, 384, count=(num_images + CAPTION_BATCH) * num_processes)
    arguments = ["--measure", str(folder), str(folder.parent / "blip")]
    said_by(launched("benchmarks.processes", arguments, num_processes), {**THREADS, **variables})
    measured = [json.loads(path.read_text()) for path in sorted(folder.glob("*.measured"))]
    seconds = max(each["seconds"] for each in measured)
    return num_images * num_processes / seconds, measured[0]["cpu"] / measured[0]["seconds"]


def _measure(folder: Path, model: str) -> None:
    """Runs the captioning script in this process, timed from the end of its first batch to its last file."""
    import library.captioning.pipeline as pipeline
    from library.captioning.caption_images import BLIP_JOB
    from library.captioning.caption_model import CaptionModel
    from library.cli.jobs.job import run_job

    begun: list[tuple[float, float]] = []
    captions, process_images = CaptionModel.captions, pipeline.process_images

    def measured_captions(*arguments: object, **generation: object) -> list[str]:
        found = captions(*arguments, **generation)
        if not begun:
            wait_for_others()
            begun.append((time.perf_counter(), time.process_time()))
        return found

    def measured(*arguments: object, **named: object) -> None:
        process_images(*arguments, **named)
        clock, cpu = begun[0]
        found = {"seconds": time.perf_counter() - clock, "cpu": time.process_time() - cpu}
        (folder / f"{os.environ.get('RANK', '0')}.measured").write_text(json.dumps(found))

    CaptionModel.captions, pipeline.process_images = measured_captions, measured
    lengths = ["--min_length", "16", "--max_length", "16"]  # random weights would find no end
    options = ["--caption_weights", model, "--batch_size", str(CAPTION_BATCH), "--device", "cpu", *lengths]
    sys.exit(run_job(BLIP_JOB, [str(folder / "train" / "1_x"), *options]))


def measured_in_turns(title: str, work: Work, folder: Path, num_rounds: int) -> list[Figure]:
    """`folder`: of what the work needs."""
    rates: dict[str, list[float]] = {"one": [], "two": [], "independent": []}
    busy: dict[str, list[float]] = {name: [] for name in rates}
    for number in range(num_rounds):
        parts = [
            partial(work, folder / f"{title}_independent{number}{each}", 1) for each in range(2)
        ]  # fmt: skip
        found = {
            "one": [work(folder / f"{title}_one{number}", 1, {})],
            "two": [work(folder / f"{title}_two{number}", 2, {})],
            "independent": together(parts, folder / f"{title}_meeting{number}"),
        }
        for name, each in found.items():
            rates[name].append(sum(rate for rate, _ in each))
            busy[name].append(sum(share for _, share in each) / len(each))
    two_over_one = ratio(f"{title}: two processes / one", rates["two"], rates["one"], None)
    return [
        Figure(f"{title}: one process", tuple(rates["one"]), "images/s"),
        Figure(f"{title}: two processes", tuple(rates["two"]), "images/s"),
        Figure(two_over_one.name, two_over_one.values, target=1.8, is_least=True),
        ratio(f"{title}: two independent processes / one", rates["independent"], rates["one"], None),
        ratio(f"{title}: two processes / two independent", rates["two"], rates["independent"], None),
        *(Figure(f"{title}: share of a core, {name}", tuple(each), "") for name, each in busy.items()),
    ]


def figures(num_rounds: int, num_steps: int = 60, only: str | None = None) -> list[Figure]:
    from benchmarks.captioning import save_small_blip

    works: dict[str, Work] = {"lora": partial(train_lora, num_steps), "captioning": partial(write_captions, num_steps)}
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder, 64, count=32)
        save_small_blip(folder / "blip")
        for title in [only] if only else works:
            found += measured_in_turns(title, works[title], folder, num_rounds)
    return found


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        folder, model = sys.argv[2:]
        _measure(Path(folder), model)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("lora", "captioning"), help="one of them")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60, help="steps, and captions, of each process")
    options = parser.parse_args()
    print(table(figures(options.rounds, options.steps, options.only)))


if __name__ == "__main__":
    main()
