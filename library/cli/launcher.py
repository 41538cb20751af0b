"""The launcher of several processes (`accelerate launch`, `torchrun`): rank, launch command, and error file.

The launcher ends all processes when one fails, and reports the first failure with the message in that process's
error file (torchelastic).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
# accelerate's variable, the option that sets it, and the prefix and names of related variables with their options
_SHARDING = {
    "ACCELERATE_USE_DEEPSPEED": (
        "--use_deepspeed",
        "ACCELERATE_DEEPSPEED_",
        {
            "CONFIG_FILE": "--deepspeed_config_file",
            "ZERO_STAGE": "--zero_stage",
            "OFFLOAD_OPTIMIZER_DEVICE": "--offload_optimizer_device",
            "OFFLOAD_PARAM_DEVICE": "--offload_param_device",
        },
    ),
    "ACCELERATE_USE_FSDP": (
        "--use_fsdp",
        "FSDP_",
        {
            "VERSION": "--fsdp_version",
            "SHARDING_STRATEGY": "--fsdp_sharding_strategy",
            "RESHARD_AFTER_FORWARD": "--fsdp_reshard_after_forward",
            "OFFLOAD_PARAMS": "--fsdp_offload_params",
            "AUTO_WRAP_POLICY": "--fsdp_auto_wrap_policy",
            "TRANSFORMER_CLS_TO_WRAP": "--fsdp_transformer_layer_cls_to_wrap",
            "MIN_NUM_PARAMS": "--fsdp_min_num_params",
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


def _sharding_options(environment: Mapping[str, str]) -> list[str]:
    """The launcher's sharding options (DeepSpeed, FSDP), read back from the environment variables that it sets."""
    for variable, (flag, prefix, names) in _SHARDING.items():
        if environment.get(variable, "").lower() == "true":
            given = [(option, environment.get(prefix + name, "")) for name, option in names.items()]
            return [flag, *(word for pair in given if pair[1] for word in pair)]
    return []


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
