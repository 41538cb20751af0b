"""The launcher of several processes (`accelerate launch`, `torchrun`): rank, launch command, and error file.

The launcher ends all processes when one fails, and reports the first failure with the message in that process's
error file (torchelastic).
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
_TRUE = ("1", "true", "yes", "on", "y", "t")
# accelerate's modes of sharding: the variable that switches one on, and those that hold its settings, each of which has
# the name of the launcher's option and of the key in accelerate's configuration
SHARDING_MODES = {
    "deepspeed": (
        "ACCELERATE_USE_DEEPSPEED",
        {
            "deepspeed_config_file": "ACCELERATE_DEEPSPEED_CONFIG_FILE",
            "zero_stage": "ACCELERATE_DEEPSPEED_ZERO_STAGE",
            "offload_optimizer_device": "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE",
            "offload_param_device": "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE",
        },
    ),
    "fsdp": (
        "ACCELERATE_USE_FSDP",
        {
            "fsdp_version": "FSDP_VERSION",
            "fsdp_sharding_strategy": "FSDP_SHARDING_STRATEGY",
            "fsdp_reshard_after_forward": "FSDP_RESHARD_AFTER_FORWARD",
            "fsdp_offload_params": "FSDP_OFFLOAD_PARAMS",
            "fsdp_auto_wrap_policy": "FSDP_AUTO_WRAP_POLICY",
            "fsdp_transformer_layer_cls_to_wrap": "FSDP_TRANSFORMER_CLS_TO_WRAP",
            "fsdp_min_num_params": "FSDP_MIN_NUM_PARAMS",
            "fsdp_activation_checkpointing": "FSDP_ACTIVATION_CHECKPOINTING",
        },
    ),
}


def is_launched() -> bool:
    """Whether this is one of several processes started by a launcher."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1


def launch_command() -> list[str]:
    """The start of the command line that launches the run again. On several machines, each adds its options.

    To be called before anything else reads accelerate's variables.
    """
    num_processes = os.environ.get("WORLD_SIZE", "1")
    options = _sharding_options(os.environ)
    if num_processes == "1" and not options:
        return [Path(sys.executable).name]
    command = ["accelerate", "launch", *options]
    if os.environ.get("LOCAL_WORLD_SIZE", "1") == num_processes:
        command += ["--num_processes", num_processes] if options else ["--multi_gpu", "--num_processes", num_processes]
    return command


def is_on(settings: Mapping[str, str], name: str) -> bool:
    """Whether a setting, or a variable of the environment, is a word for true."""
    return settings.get(name, "").lower() in _TRUE


def sharding_settings(environment: Mapping[str, str], mode: str) -> dict[str, str] | None:
    """The settings of a mode that accelerate's launcher was given, by their names; None where the mode is off."""
    switch, variables = SHARDING_MODES[mode]
    if not is_on(environment, switch):
        return None
    return {name: environment[variable] for name, variable in variables.items() if environment.get(variable)}


def _sharding_options(environment: Mapping[str, str]) -> list[str]:
    """The launcher's options of the mode of sharding that is on, read back from the environment."""
    for mode in SHARDING_MODES:
        settings = sharding_settings(environment, mode)
        if settings is not None:
            return [f"--use_{mode}", *(word for name, value in settings.items() for word in (f"--{name}", value))]
    return []


def command_line(words: Sequence[str]) -> str:
    """A command as its user can paste it."""
    return subprocess.list2cmdline(words) if sys.platform == "win32" else shlex.join(words)


def is_first_process() -> bool:
    """Whether this is the main process (rank 0)."""
    return int(os.environ.get("RANK") or 0) == 0


def local_rank_and_count() -> tuple[int, int]:
    """The local rank of this process, and the number of processes on this machine."""
    if not is_launched():
        return 0, 1
    num_processes = os.environ["WORLD_SIZE"]
    rank = os.environ.get("LOCAL_RANK") or os.environ.get("RANK") or 0
    return int(rank), int(os.environ.get("LOCAL_WORLD_SIZE") or num_processes)


def write_elastic_error_file(message: str, *, is_cause: bool = True) -> None:
    """Writes this process's error to the launcher's error file, if there is a launcher."""
    path = os.environ.get(_ERROR_FILE)
    if not path:
        return
    # the launcher reports the earliest failure, in whole seconds, and among equals that of the lowest rank: processes
    # that fail because they lost this one do so in the same second
    content = {"message": {"message": message, "extraInfo": {"timestamp": str(int(time.time()) - is_cause)}}}
    try:
        Path(path).write_text(json.dumps(content), encoding="utf-8")
    except OSError:  # the error is on standard error too
        return
