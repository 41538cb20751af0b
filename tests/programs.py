"""Python programs of this checkout as processes of their own, without the seconds that their imports take.

Each is forked from a process that has made the heavy imports already; what a program costs is then its own work. In all
else it is what `subprocess` would start: arguments, environment, streams, signals, exit status. Only what concerns a
start itself (which modules are imported, variables that one reads while it is imported) needs `subprocess`.
"""

from __future__ import annotations

import atexit
import importlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from types import ModuleType
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
_PYTHONPATH = os.environ.get("PYTHONPATH", "")  # of the process that is forked
CAN_FORK = sys.platform == "linux"
LAUNCHER = "accelerate.commands.accelerate_cli"
IMPORTED = [
    "library.training.run", "library.methods.adapter", "library.methods.whole_model",
    "library.methods.textual_inversion", "networks.lora", "diffusers", "PIL.PngImagePlugin", "torch.utils.tensorboard",
    "accelerate.commands.launch", "accelerate.commands.estimate", "torch.distributed.run",
]  # fmt: skip

if CAN_FORK:
    _forks = multiprocessing.get_context("forkserver")
    _forks.set_forkserver_preload(IMPORTED)


class Program:
    """A running program, with those of `subprocess.Popen`'s methods that tests use."""

    def __init__(self, process: BaseProcess, stdout: IO[str] | None = None, stderr: IO[str] | None = None):
        self._process, self.stdout, self.stderr = process, stdout, stderr
        self.pid = process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout or 0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it has said on both streams, once it has ended."""
        said = ["", ""]

        def read(index: int, stream: IO[str]) -> None:
            said[index] = stream.read()

        streams = enumerate((self.stdout, self.stderr))
        threads = [threading.Thread(target=read, args=stream, daemon=True) for stream in streams]
        for thread in threads:
            thread.start()
        self.wait(timeout)
        for thread in threads:
            thread.join()
        return said[0], said[1]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(words: Sequence[object], *, env: Mapping[str, str] | None = None, cwd: Path = ROOT) -> Program:
    """Starts `python words...`: a script, `-m` and a module, or `-c` and a text."""
    words, env = [str(word) for word in words], dict(os.environ if env is None else env)
    if not CAN_FORK:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        return subprocess.Popen([sys.executable, *words], env=env, cwd=cwd, **streams)
    pipes = [os.pipe() for _ in range(2)]
    process = _forks.Process(target=_Start(words, env, str(cwd), [written for _, written in pipes]))
    here = os.getcwd()
    os.chdir(ROOT)  # where the first start finds what is to be imported
    try:
        process.start()
    finally:
        os.chdir(here)
        for _, written in pipes:
            os.close(written)
    return Program(process, *(open(read, encoding="utf-8", errors="replace") for read, _ in pipes))


def run(words: Sequence[object], *, timeout: float = 300, **options) -> subprocess.CompletedProcess:
    """Runs `python words...` to its end."""
    program = start(words, **options)
    try:
        stdout, stderr = program.communicate(timeout)
    finally:
        program.kill()
    return subprocess.CompletedProcess(list(words), program.returncode, stdout, stderr)


class _Start:
    """Becomes the program, in the forked process."""

    def __init__(self, words: list[str], env: dict[str, str], cwd: str, streams: list[int]):
        self.words, self.env, self.cwd, self.streams = words, env, cwd, streams

    def __getstate__(self) -> dict:
        return {**vars(self), "streams": [DupFd(stream) for stream in self.streams]}

    def __call__(self) -> None:
        os.setsid()  # a group of processes of its own, for signals to it
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests run under nohup
        for number, stream in enumerate(self.streams, start=1):
            os.dup2(stream.detach(), number)
        os.chdir(self.cwd)
        become(self.words, self.env)


def become(words: list[str], env: dict[str, str]) -> None:
    """Runs `python words...` in this process, and ends it as Python would."""
    multiprocessing.set_start_method(None, force=True)  # its own workers start as they do anywhere
    changed = [name for name in {*os.environ, *env} if os.environ.get(name) != env.get(name)]
    os.environ.clear()
    os.environ.update(env)
    _find_packages(env.get("PYTHONPATH", ""))
    if any(name.startswith("HF_") for name in changed):
        importlib.reload(importlib.import_module("huggingface_hub.constants"))
    if words[:2] == ["-m", LAUNCHER]:
        _fork_what_is_launched()
    status = _status_of(lambda: _run(words))
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _find_packages(python_path: str) -> None:
    """Looks in the folders of PYTHONPATH first; what the process before has imported from there is not imported yet."""
    if python_path == _PYTHONPATH:
        return
    folders = [folder for folder in python_path.split(os.pathsep) if folder]
    sys.path[:0] = folders
    # accelerate adds the current folder, which may hold the virtual environment: its packages stay as they are
    own = tuple(f"{folder}{os.sep}" for folder in folders if not Path(sys.prefix).is_relative_to(folder))
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(own):
            del sys.modules[name]


def _run(words: list[str]) -> None:
    while words[0] == "-u":
        words = words[1:]
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        sys.path.insert(0, "")
        sys.modules["__main__"] = ModuleType("__main__")
        exec(words[1], vars(sys.modules["__main__"]))
    elif words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        runpy.run_path(words[0], run_name="__main__")


def _status_of(work: Callable[[], None]) -> int:
    try:
        work()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")
        return 1
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:  # noqa: BLE001 - Python's own last resort
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _fork_what_is_launched() -> None:
    """The launcher of several processes then forks them, too."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler import SubprocessHandler

    def start(handler: SubprocessHandler, words: tuple[str, ...], env: dict[str, str]) -> Program:
        process = multiprocessing.get_context("fork").Process(target=_become_worker, args=(list(words[1:]), env))
        process.start()
        return Program(process)

    SubprocessHandler._popen = start


def _become_worker(words: list[str], env: dict[str, str]) -> None:
    os.setsid()  # as the launcher wants it
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    become(words, env)
