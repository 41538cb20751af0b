"""What the data of large photographs costs a training: 10,000 JPEG files of 3000x2000, trained at 512 pixels.

    python -m benchmarks.data_loading [--rounds 5] [--num 10000] [--distinct 100] [--steps 100]

Some photographs are made, and linked under many names (copied where links are not possible); files are read from the
system's cache. Measured, with and without `--resize_interpolation jpeg_scaled`: the scan and the start from its index;
images per second of the loader with one worker, beside Pillow alone in a loop; and the share of time that steps wait
for their batches, measured as the trainer does for `perf/data_wait_share`. A step is a stand-in that sleeps, as the
processor does during a GPU's step, for 1.3 times as long as the worker needs for a batch.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import cv2

from benchmarks.figures import Figure, ratio, table
from benchmarks.growth import cpu_seconds
from benchmarks.photographs import by_pillow, make_photograph
from library.data.batches.loader import BatchDataset, BatchLoader
from library.data.batches.plan import TrainingData
from library.data.config.options import DatasetOptions
from library.data.load_data import load_training_data
from library.data.records import MicroBatch, StepCounter
from library.data.scan.scan_index import INDEX_NAME
from library.training.monitoring.performance import StepTimes

_SETTLED_SECONDS = 2.1  # the index leaves out files that were written just before
_STEP = 1.3  # of the seconds that the worker needs for a batch
_MODES = {"": None, ", jpeg_scaled": "jpeg_scaled"}
_UNITS: dict[str, tuple] = {
    "first scan": ("images/s",),
    "start from its index": ("images/s",),
    "Pillow alone": ("images/s",),
    "loader": ("images/s",),
    "share of steps that wait": ("%", 2.0),
    "first step of an epoch waits": ("ms",),
}


def make_photographs(folder: Path, num: int, num_distinct: int) -> list[Path]:
    """`num` names of `num_distinct` photographs."""
    folder.mkdir(parents=True)
    paths = [folder / f"{number:06}.jpg" for number in range(num)]
    for number, path in enumerate(paths):
        if number < num_distinct:
            make_photograph(path, number)
            continue
        try:
            os.link(paths[number % num_distinct], path)
        except OSError:
            shutil.copyfile(paths[number % num_distinct], path)
    time.sleep(_SETTLED_SECONDS)
    return paths


def _load(folder: Path, interpolation: str | None = None) -> TrainingData:
    settings = {} if interpolation is None else {"resize_interpolation": interpolation}
    return load_training_data(
        DatasetOptions(
            in_json=None,
            train_data_dir=str(folder),
            resolution=(512, 512),
            enable_bucket=True,
            cache_info=True,
            **settings,
        )
    )


def scan_speeds(folder: Path, num: int) -> tuple[float, float]:
    """Images per CPU second of a first scan, and of a start from its index."""
    speeds = []
    (folder / "1_x" / INDEX_NAME).unlink(missing_ok=True)
    for _ in range(2):
        started = cpu_seconds()
        assert _load(folder).num_items == num
        speeds.append(num / (cpu_seconds() - started))
    return speeds[0], speeds[1]


def _loader(data: TrainingData, num_workers: int = 1) -> BatchLoader:
    clock = StepCounter(1, data.num_micro_batches, data.num_micro_batches)
    return BatchLoader(BatchDataset(data, seed=1, clock=clock, latent_source="pixels"), num_workers, persistent=False)


def seconds_per_batch(data: TrainingData, plan: Sequence[MicroBatch]) -> float:
    """Of one worker; the first batch is not counted, before which the worker starts."""
    batches = _loader(data).batches(plan)
    next(batches)
    started = time.perf_counter()
    assert sum(1 for _ in batches) == len(plan) - 1
    return (time.perf_counter() - started) / (len(plan) - 1)


def waiting(data: TrainingData, plan: Sequence[MicroBatch], seconds: float) -> tuple[float, float]:
    """Percent of the time of these steps that they wait for their batches, and milliseconds that the first one waits.

    The first of an epoch waits until the worker has started and has made a batch: it is not part of the share.
    """
    times, batches = StepTimes(), _loader(data).batches(plan)
    started = time.perf_counter()
    next(batches)
    first = time.perf_counter() - started
    time.sleep(seconds)
    for _ in plan[1:]:
        with times.step():
            with times.fetch():
                next(batches)
            time.sleep(seconds)
    return 100 * times.take()["perf/data_wait_share"], 1000 * first


def figures(num_rounds: int, num: int = 10_000, num_distinct: int = 24, num_steps: int = 60) -> list[Figure]:
    cv2.setNumThreads(1)
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        paths = make_photographs(folder / "1_x", num, num_distinct)
        loaded = {name: _load(folder, interpolation) for name, interpolation in _MODES.items()}
        plans = {name: data.batches_of_epoch(1, 0)[:num_steps] for name, data in loaded.items()}
        for _ in range(num_rounds):
            for name, speed in zip(("first scan", "start from its index"), scan_speeds(folder, num), strict=True):
                found.setdefault(name, []).append(speed)
            found.setdefault("Pillow alone", []).append(_speed_of_pillow(paths[:num_distinct]))
            for name, data in loaded.items():
                seconds = seconds_per_batch(data, plans[name])
                share, first = waiting(data, plans[name], _STEP * seconds)
                found.setdefault(f"loader, 1 worker{name}", []).append(1 / seconds)
                found.setdefault(f"share of steps that wait{name}", []).append(share)
                found.setdefault(f"first step of an epoch waits{name}", []).append(first)
    return [
        *(Figure(name, tuple(values), *_UNITS[name.partition(",")[0]]) for name, values in found.items()),
        *(
            ratio(f"loader, 1 worker{name} / Pillow", found[f"loader, 1 worker{name}"], found["Pillow alone"], None)
            for name in _MODES
        ),
    ]


def _speed_of_pillow(paths: Sequence[Path]) -> float:
    started = time.perf_counter()
    for path in paths:
        by_pillow(path)
    return len(paths) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--num", type=int, default=10_000, help="names of photographs")
    parser.add_argument("--distinct", type=int, default=100, help="photographs that are made")
    parser.add_argument("--steps", type=int, default=100, help="steps in which the waiting is measured")
    options = parser.parse_args()
    print(table(figures(options.rounds, options.num, options.distinct, options.steps)))


if __name__ == "__main__":
    main()
