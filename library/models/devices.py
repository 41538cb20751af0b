"""The device that a model runs on, and the precision that it has there."""

from __future__ import annotations

import ctypes.util
import shutil
import sys
from pathlib import Path

import torch

from library.cli.errors import UserError
from library.cli.launcher import local_rank_and_count

_CUDA = "cu130"  # of PyTorch's wheel index
DTYPES = {"float": torch.float32, "no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def check_precision(mixed_precision: str, device_type: str) -> None:
    """Raises `UserError` where a device does not support `--mixed_precision`."""
    is_gpu = device_type == "cuda"
    if mixed_precision == "fp16" and not is_gpu:
        raise UserError("--mixed_precision fp16 needs a GPU, and none was found", hint="use bf16 or no")
    if mixed_precision == "bf16" and is_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError("--mixed_precision bf16 is not supported by this GPU", hint="use fp16 or no")
    if mixed_precision == "bf16" and device_type == "mps" and not torch.backends.mps.is_macos_or_newer(14, 0):
        raise UserError("--mixed_precision bf16 on MPS needs macOS 14", hint="use no")


def choose_device(name: str | None) -> torch.device:
    """The device that `--device` names; where it names none a GPU, if there is one, of its own for each process.

    Raises `UserError` for one that this machine does not have.
    """
    kind, _, number = (name or default_kind()).partition(":")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"--device {name}: PyTorch finds no MPS device", hint="give cpu, or leave it out")
    if kind != "cuda":
        return torch.device(kind)
    index, count = int(number or local_rank_and_count()[0]), torch.cuda.device_count()
    if index >= count:
        if not count:
            raise UserError(
                f"--device {name}: PyTorch finds no GPU", hint="give cpu, or install a PyTorch for your GPU"
            )
        raise UserError(
            f"there is no GPU {index}: PyTorch finds {count}, counted from 0",
            hint="give --device another, or launch as many processes as there are GPUs",
        )
    return torch.device(kind, index)


def default_kind() -> str:
    """The kind of device where none is named: a GPU, or MPS on a Mac, or else the CPU."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def unused_gpu() -> str | None:
    """A warning where this PyTorch is built without CUDA and the machine has an NVIDIA GPU; else None."""
    if torch.version.cuda is not None or torch.version.hip is not None or not _has_nvidia_driver():
        return None
    version = torch.__version__.partition("+")[0]
    return (
        f"this machine has an NVIDIA GPU, and PyTorch {torch.__version__} is built without CUDA: training runs on the"
        f" CPU. Install the build for CUDA: pip install --force-reinstall torch=={version}"
        f" --index-url https://download.pytorch.org/whl/{_CUDA} (other CUDA versions: pytorch.org/get-started/locally)"
    )


def _has_nvidia_driver() -> bool:
    """Whether the driver's tool or library is there."""
    if shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists():
        return True
    return ctypes.util.find_library("nvcuda" if sys.platform == "win32" else "cuda") is not None
