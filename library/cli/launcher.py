"""What the launcher of several processes (`accelerate launch`, `torchrun`) is told of a process that fails.

The launcher ends all processes when one fails, and its last lines name the first failure with the message that the
process has left in a file of a given form; without one it says that there is none.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"


def is_launched() -> bool:
    """Whether this is one of several processes that a launcher has started."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1


def launch_command() -> list[str]:
    """What starts as many processes again. On several machines, each adds its options."""
    num_processes = os.environ.get("WORLD_SIZE", "1")
    command = ["accelerate", "launch"]
    if os.environ.get("LOCAL_WORLD_SIZE") == num_processes:
        command += ["--multi_gpu", "--num_processes", num_processes]
    return command


def is_first_process() -> bool:
    """Whether this process speaks for all of a run."""
    return int(os.environ.get("RANK") or 0) == 0


def local_place() -> tuple[int, int]:
    """Process i of the n of this machine."""
    if not is_launched():
        return 0, 1
    num_processes = os.environ["WORLD_SIZE"]
    rank = os.environ.get("LOCAL_RANK") or os.environ.get("RANK") or 0
    return int(rank), int(os.environ.get("LOCAL_WORLD_SIZE") or num_processes)


def tell_launcher(message: str, *, is_cause: bool = True) -> None:
    """Leaves what this process failed of where the launcher looks for it, if there is a launcher."""
    place = os.environ.get(_ERROR_FILE)
    if not place:
        return
    # the launcher takes the earliest failure for the cause, in whole seconds, and of equals the first process's:
    # those that only lost this one are seen in the same second
    told = {"message": {"message": message, "extraInfo": {"timestamp": str(int(time.time()) - is_cause)}}}
    try:
        Path(place).write_text(json.dumps(told), encoding="utf-8")
    except OSError:  # it stands among the messages of this process too
        return
