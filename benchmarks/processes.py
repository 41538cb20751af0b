"""Images per second of a LoRA in two processes of one thread against one process of one thread.

    python -m benchmarks.processes [--steps 60]

Both take turns; the steps alone are timed. Needs two cores that do nothing else: what other work takes, two processes
miss more than one.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.commands import BASE
from benchmarks.figures import Figure, table
from benchmarks.training_runs import make_data, run

FLAGS = [
    "--cache_latents", "--train_batch_size", "8", "--network_dim", "4", "--learning_rate", "1e-4",
    "--network_train_unet_only", "--cache_text_encoder_outputs",
]  # fmt: skip


def images_per_second(folder: Path, name: str, num_processes: int, num_steps: int) -> float:
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    found = run(
        "train_network", FLAGS, model=BASE, data=folder, output=folder / name, size=64, num_steps=num_steps,
        num_processes=num_processes, variables=threads,
    )  # fmt: skip
    return 8 * num_processes * num_steps / found["seconds"]


def figures(num_rounds: int, num_steps: int = 60) -> list[Figure]:
    one, two = [], []
    with tempfile.TemporaryDirectory() as name:
        make_data(Path(name), 64, count=32)
        for number in range(num_rounds):
            one.append(images_per_second(Path(name), f"one{number}", 1, num_steps))
            two.append(images_per_second(Path(name), f"two{number}", 2, num_steps))
    ratios = tuple(b / a for a, b in zip(one, two, strict=True))
    return [
        Figure("LoRA, one process", tuple(one), "images/s"),
        Figure("LoRA, two processes", tuple(two), "images/s"),
        Figure("two processes / one", ratios, target=1.8, is_least=True),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    print(table(figures(options.rounds, options.steps)))


if __name__ == "__main__":
    main()
