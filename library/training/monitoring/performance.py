"""How fast the steps are, what they wait for, and how much memory the run has taken."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class StepTimes:
    """Wall time of the steps since the last `take`; saves, samples and validation between them do not count."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._clear()

    def _clear(self) -> None:
        self._seconds = self._waiting = 0.0
        self._num_steps = self._num_images = 0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Within it a step is made."""
        start = self._clock()
        yield
        self._seconds += self._clock() - start
        self._num_steps += 1

    @contextmanager
    def fetch(self) -> Iterator[None]:
        """Within it a step waits for its images."""
        start = self._clock()
        yield
        self._waiting += self._clock() - start

    def count(self, num_images: int) -> None:
        """Counts images that all processes together have trained on."""
        self._num_images += num_images

    def take(self) -> dict[str, float]:
        """The curves `perf/*` of the steps since the last call; none where there was no step."""
        if not self._num_steps or not self._seconds:
            return {}
        curves = {
            "perf/seconds_per_step": self._seconds / self._num_steps,
            "perf/images_per_second": self._num_images / self._seconds,
            "perf/data_wait_share": self._waiting / self._seconds,
        }
        self._clear()
        return curves


def peak_memory(device: torch.device) -> float:
    """GiB: the most that PyTorch has held on a CUDA device, what it holds on MPS, the peak of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 2**30
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**30
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, else KiB
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
