"""Maps a function over many files in a pool of processes, where that is faster."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

logger = logging.getLogger(__name__)

POOL_FROM = 4000  # items: fewer are done before the processes have started
_CHUNK = 1000
_MOST_PROCESSES = 8

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_chunks(
    function: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item], pool_from: int = POOL_FROM
) -> Iterator[Result]:
    """The results of `function`, one for each item, in order; `function` gets some items at a time.

    From `pool_from` items on, several processes are used, so `function` must be importable. If none can be started, or
    one dies, the rest is done in this process.
    """
    chunk = min(_CHUNK, max(1, len(items) // 4)) if pool_from < _CHUNK else _CHUNK
    chunks = [items[start : start + chunk] for start in range(0, len(items), chunk)]
    num_done = 0
    if len(items) >= pool_from and _may_start_processes() and _num_processes() > 1:
        try:
            with _make_pool() as pool:
                for results in pool.map(function, chunks):
                    num_done += 1
                    yield from results
        except (OSError, RuntimeError) as error:  # RuntimeError: also a broken pool, and none on this system
            logger.debug("the files are read in one process: %s", error)
    for rest in chunks[num_done:]:
        yield from function(rest)


def _may_start_processes() -> bool:
    import multiprocessing  # it takes longer to import than a small folder takes to scan

    return not multiprocessing.current_process().daemon


def _num_processes() -> int:
    num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(num_cpus, _MOST_PROCESSES)


def _make_pool() -> ProcessPoolExecutor:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    # a fork starts at once, but copies locks that other threads may hold
    can_fork = sys.platform == "linux" and threading.active_count() == 1
    context = multiprocessing.get_context("fork" if can_fork else "spawn")
    return ProcessPoolExecutor(_num_processes(), mp_context=context, initializer=_start_worker)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process answers Ctrl-C and ends its workers
    gc.disable()  # results of a worker have no cycles, and it runs for seconds
