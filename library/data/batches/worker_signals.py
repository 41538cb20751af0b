"""Signals and dataloader workers: what asks the run to end reaches the main process alone, which ends its workers."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import BaseContext

_PYTORCHS = "torch.utils.data._utils.signal_handling"
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
# those that ask a program to end, where the system has them: Ctrl-C, kill, a closed terminal, Ctrl-Break
STOP_SIGNALS = tuple(signal.Signals[name] for name in _NAMES if name in signal.Signals.__members__)


@contextmanager
def workers_starting(context: BaseContext | None) -> Iterator[None]:
    """Within it these signals wait. A worker that is started within it holds them too, forked or spawned.

    `context`: the one that starts them, if not the default. The worker calls `ignore_signals` once it runs. Windows
    cannot hold signals back.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    context = context or multiprocessing.get_context()
    if context.get_start_method() != "fork":
        context.Lock()  # starts the resource tracker of such processes, which lets in what waits
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        with _child_handler_kept():
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _child_handler_kept() -> Iterator[None]:
    """PyTorch's handler raises at any line of the main process, in the midst of an update too, when a worker dies.

    Without it the loader notices when it waits for that worker's batch.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    if getattr(handler, "__module__", "") == _PYTORCHS:  # of an earlier loader of this process
        handler = signal.SIG_DFL
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, handler)


def ignore_signals() -> None:
    """For a worker: a signal to the process group, or to all processes of a job, must not end it before the run."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
