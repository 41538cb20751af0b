"""Works that are measured in turns, and images like photographs for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image


def make_images(folder: Path, count: int, size: int) -> None:
    """Smooth colours with noise over them, which compress about as photographs do."""
    folder.mkdir()
    x, y = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size))
    for number in range(count):
        rng = np.random.default_rng(number)
        colours, slopes = rng.uniform(0, 255, 3), rng.uniform(-200, 200, (2, 3))
        smooth = colours + x[..., None] * slopes[0] + y[..., None] * slopes[1]
        noisy = smooth + rng.normal(0, 6, (size, size, 3))
        ending = ".jpg" if number % 2 else ".png"
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:05d}{ending}")


def best_of(
    works: dict[str, Callable[[], None]], num_rounds: int, prepare: Callable[[], None]
) -> dict[str, tuple[float, float]]:
    """The least seconds of each work, done in turns: on the clock, and of the CPU in all threads."""
    seconds = dict.fromkeys(works, (float("inf"), float("inf")))
    next(iter(works.values()))()  # the first of all is slower
    for _ in range(num_rounds):
        for name, work in works.items():
            prepare()
            start = time.perf_counter(), time.process_time()
            work()
            clock, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
            seconds[name] = min(seconds[name][0], clock), min(seconds[name][1], cpu)
    return seconds
