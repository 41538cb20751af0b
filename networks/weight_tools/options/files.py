"""Options of the tools on LoRA weight files. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from library.cli.errors import UserError
from library.cli.jobs.options import parse_device
from library.cli.options import option
from library.models.families import base_problem
from library.models.options import ModelOptions
from library.models.registry import detect_model
from library.models.weights.path_checks import SINGLE_FILE_ENDINGS, weight_file_problem

PRECISIONS = ("float", "fp16", "bf16")
DYNAMIC_METHODS = ("sv_ratio", "sv_fro", "sv_cumulative")
_DOWNLOAD_AGAIN = "copy or download it again"


@dataclass(frozen=True)
class CheckOptions:
    """Which LoRA file is checked."""

    GROUP: ClassVar[str] = "Check"

    file: str | None = option(help="LoRA file to check", positional=True, required=True, metavar="FILE")
    show_all_keys: bool = option(False, help="a line for each key of the file, not for each layer", aliases=("s",))

    @property
    def source(self) -> str:
        assert self.file is not None  # it is required
        return self.file

    def check(self) -> Iterator[UserError]:
        if self.file is not None:
            yield from source_problems("FILE", self.file)


def save_to_option() -> Any:
    return option(help="file to write, such as lora.safetensors", required=True, metavar="FILE")


def precision_option(default: str) -> Any:
    return option(help=f"data type of the weights that are written (default: {default})", choices=PRECISIONS)


def device_option() -> Any:
    return option(
        help="device that computes: cpu, cuda, a GPU such as cuda:1, or mps (default: a GPU where there is one)",
        parse=parse_device,
        metavar="DEVICE",
    )


class FromFileToFile:
    """The file that is read and the one that is written, of options that are valid."""

    model: str | None
    save_to: str | None

    @property
    def source(self) -> str:
        assert self.model is not None  # it is required
        return self.model

    @property
    def target(self) -> str:
        assert self.save_to is not None  # it is required
        return self.save_to


@dataclass(frozen=True)
class ResizeOptions(FromFileToFile):
    """Which LoRA file is resized, and to which ranks."""

    GROUP: ClassVar[str] = "Resizing"

    model: str | None = option(help="LoRA file to resize", required=True, metavar="FILE")
    save_to: str | None = save_to_option()
    save_precision: str | None = precision_option("that of the file")
    new_rank: int = option(4, help="rank (dim) of the resized LoRA; the largest one with --dynamic_method", minimum=1)
    new_conv_rank: int | None = option(help="the same for 3x3 convolutions (default: --new_rank)", minimum=1)
    device: str | None = device_option()
    verbose: bool = option(False, help="log each layer's new rank, and how much of its norm that keeps")
    dynamic_method: str | None = option(
        help="choose each layer's rank by its singular values: sv_ratio keeps those above the largest divided by"
        " --dynamic_param, sv_cumulative as many as hold this share of their sum, sv_fro of the Frobenius norm",
        choices=DYNAMIC_METHODS,
    )
    dynamic_param: float | None = option(
        help="parameter of --dynamic_method: 2 or more for sv_ratio, a share between 0 and 1 for the others", above=0
    )

    def rank_of(self, is_spatial: bool) -> int:
        """The rank asked for, of 3x3 convolutions or of other layers."""
        return self.new_conv_rank if is_spatial and self.new_conv_rank is not None else self.new_rank

    def check(self) -> Iterator[UserError]:
        if self.model is not None:
            yield from source_problems("--model", self.model)
        yield from target_problems(self.save_to)
        method, parameter = self.dynamic_method, self.dynamic_param
        if method is not None and parameter is None:
            yield UserError(f"--dynamic_method {method} needs --dynamic_param", f"give {_wanted(method)}")
        elif method is not None and parameter is not None and not _is_possible(method, parameter):
            yield UserError(f"--dynamic_param {parameter:g} is not possible with {method}", f"give {_wanted(method)}")
        elif method is None and parameter is not None:
            yield UserError("--dynamic_param needs --dynamic_method", "give that too, or leave --dynamic_param out")


def _wanted(method: str) -> str:
    return "2 or more" if method == "sv_ratio" else "a number between 0 and 1, such as 0.9"


def _is_possible(method: str, parameter: float) -> bool:
    return parameter >= 2 if method == "sv_ratio" else parameter <= 1


def target_problems(path: str | None) -> Iterator[UserError]:
    """What is wrong with the path of a LoRA file to write; None: it is missing, which is reported already."""
    if path is None:
        return
    if os.path.isdir(path):
        yield UserError(f"--save_to {path} is a folder", "give the path of a .safetensors file")
    elif not path.endswith(SINGLE_FILE_ENDINGS):
        yield UserError(f"--save_to {path}: unknown kind of file", f"end it in {', '.join(SINGLE_FILE_ENDINGS)}")
    elif not os.path.isdir(os.path.dirname(path) or "."):
        yield UserError(f"--save_to {path}: its folder does not exist", "create the folder, or correct the path")


def base_problems(flag: str, paths: Sequence[str], model: ModelOptions) -> Iterator[UserError]:
    """LoRA files that were made for another kind of model, as far as small files show that."""
    try:
        found = detect_model(model)
    except UserError:
        return  # said of the model
    if found is not None:
        problems = (base_problem(flag, path, found.detected.title, found.detected.source) for path in paths)
        yield from filter(None, problems)


def source_problems(flag: str, path: str) -> Iterator[UserError]:
    """What is wrong with a LoRA file to read, by its name, header and size; `flag`: what the user gave it with."""
    if os.path.isdir(path):
        yield UserError(f"{flag} {path} is a folder", "give the path of a LoRA file")
    elif not os.path.isfile(path):
        yield UserError(f"{flag} {path}: there is no such file", "check the path")
    elif not path.lower().endswith(SINGLE_FILE_ENDINGS):
        yield UserError(f"{flag} {path}: unknown kind of file", f"known endings: {', '.join(SINGLE_FILE_ENDINGS)}")
    else:
        problem = weight_file_problem(Path(path))
        if problem is not None:
            yield UserError(f"{flag} {path} {problem}", _DOWNLOAD_AGAIN)
