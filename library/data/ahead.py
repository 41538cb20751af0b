"""Work that threads do ahead of the one that needs its results: decoding while a model computes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def thread_pool(num_threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that have ended when the block is left; what they have not begun by then is cancelled."""
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="ahead")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def results_ahead(
    pool: ThreadPoolExecutor, work: Callable[[T], R], items: Sequence[T], limit: int
) -> Iterator[Future[R]]:
    """The results of `work` in order, with at most `limit` started ahead."""
    started: deque[Future[R]] = deque()
    waiting = iter(items)
    for _ in items:
        while len(started) < limit and (item := next(waiting, None)) is not None:
            started.append(pool.submit(work, item))
        yield started.popleft()


def num_cpus() -> int:
    """The number of CPU cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows do not have it
        return os.cpu_count() or 1
