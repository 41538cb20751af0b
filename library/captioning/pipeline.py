"""Images through a model: decoded ahead by threads, given to the model in batches, results stored by a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from tqdm.contrib.logging import logging_redirect_tqdm

from library.cli.errors import UserError
from library.cli.jobs.outcome import Outcome
from library.cli.launcher import is_first_process
from library.cli.logging import progress_bar
from library.data.ahead import results_ahead, thread_pool

LoadedT = TypeVar("LoadedT")
ResultT = TypeVar("ResultT")

_MAX_WAITING_RESULTS = 64  # computed and not stored yet
_BATCHES_AHEAD = 2  # that are decoded, or being decoded, while the model has one


@dataclass(frozen=True)
class Stages(Generic[LoadedT, ResultT]):
    """What happens to an image, which is known by its path."""

    load: Callable[[str], LoadedT]  # called by several threads
    infer: Callable[[Sequence[str], Sequence[LoadedT]], Sequence[ResultT]]
    store: Callable[[str, ResultT], None]  # called by one other thread


def process_images(
    paths: Sequence[str],
    stages: Stages[LoadedT, ResultT],
    outcome: Outcome,
    *,
    batch_size: int,
    num_threads: int,
    title: str,
) -> None:
    """Takes all images through the stages, in order; `outcome` gets what was done, and what failed with its reason.

    An image that cannot be loaded, or whose result cannot be stored, fails by itself; what `infer` raises is raised.
    All threads have ended when this returns or raises, and what the model has computed is stored.
    """
    with (
        thread_pool(num_threads) as loaders,
        thread_pool(1) as writer,
        logging_redirect_tqdm(),
        progress_bar(len(paths), title, is_quiet=not is_first_process()) as bar,
    ):
        limit = batch_size * _BATCHES_AHEAD + num_threads
        loading = zip(paths, results_ahead(loaders, stages.load, paths, limit), strict=True)
        stored: deque[tuple[str, Future[None]]] = deque()
        try:
            for names, loaded in _batches(loading, batch_size, outcome, bar.update):
                results = stages.infer(names, loaded)
                stored.extend(
                    (name, writer.submit(stages.store, name, each)) for name, each in zip(names, results, strict=True)
                )
                _count(stored, _MAX_WAITING_RESULTS, outcome)
                bar.update(len(names))
        finally:
            _count(stored, 0, outcome)


def _batches(
    loading: Iterator[tuple[str, Future[LoadedT]]],
    batch_size: int,
    outcome: Outcome,
    on_failed: Callable[[int], object],
) -> Iterator[tuple[list[str], list[LoadedT]]]:
    """Full batches of the images that can be loaded, and the rest."""
    names: list[str] = []
    batch: list[LoadedT] = []
    for name, future in loading:
        try:
            batch.append(future.result())
        except UserError as error:
            outcome.failed[name] = error.message
            on_failed(1)
            continue
        names.append(name)
        if len(batch) == batch_size:
            yield names, batch
            names, batch = [], []
    if batch:
        yield names, batch


def _count(stored: deque[tuple[str, Future[None]]], limit: int, outcome: Outcome) -> None:
    """Waits until at most `limit` results are not stored yet, and counts those that are."""
    while stored and (len(stored) > limit or stored[0][1].done()):
        name, future = stored.popleft()
        try:
            future.result()
        except UserError as error:
            outcome.failed[name] = error.message
        except OSError as error:
            outcome.failed[name] = f"what it gave cannot be written: {error.strerror or error}"
        else:
            outcome.done += 1
