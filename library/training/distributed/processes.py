"""Checks that the processes of a run agree, and the error when one of them is lost."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from library.cli.errors import LostProcess, UserError, listed
from library.cli.launcher import is_launched, local_rank_and_count
from library.cli.options import option_fields
from library.cli.parser import Options

T = TypeVar("T")

# in gloo's errors about a process that ended or does not answer; it has no exception class for them
_LOST = ("gloo", "Connection closed by peer", "Connection reset by peer")


@contextmanager
def process_errors() -> Iterator[None]:
    """Turns the errors of a lost process into a `LostProcess`."""
    try:
        yield
    except RuntimeError as error:
        if not tells_of_loss(error):
            raise
        raise lost_process() from None


def tells_of_loss(error: BaseException) -> bool:
    """Whether the error says that another process of the run has ended."""
    if not is_launched() or not isinstance(error, RuntimeError):  # the base class of PyTorch's distributed errors
        return False
    return isinstance(error, torch.distributed.DistError) or any(sign in str(error) for sign in _LOST)


def lost_process() -> LostProcess:
    return LostProcess(
        "another process of this run has ended, or does not answer",
        hint="see that process's own error; if it was only slow, raise --ddp_timeout",
    )


class ComparedData(Protocol):
    """Of what a run learns from, what has to be the same in all processes."""

    def digest(self) -> str: ...

    def paths(self) -> list[str]: ...


def check_same_run(accelerator: Accelerator, options: Options, data: ComparedData, num_steps_done: int) -> None:
    """Raises `UserError`, in all processes, where step, data or options differ: each machine has its own files.

    num_steps_done: of the state to resume from. Call it before any other collective operation.
    """
    if accelerator.num_processes == 1:
        return
    paths = hashlib.sha256("\n".join(data.paths()).encode("utf-8", "surrogatepass")).digest()
    everyone = gather_object([(num_steps_done, data.digest(), paths, _values(options))])
    steps, digests, all_paths, values = zip(*everyone, strict=True)
    if len(set(steps)) > 1:
        raise UserError(
            f"the processes would start after different steps: {', '.join(map(str, sorted(set(steps))))}",
            hint="all machines need the state of --resume: share --output_dir between them, or copy the state",
        )
    if len(set(digests)) > 1:
        raise UserError(
            "the processes have different images, captions or dataset settings",
            hint="give all machines the same files and options",
        )
    if len(set(all_paths)) > 1:
        raise UserError(
            "the processes have the images under different paths",
            hint="use the same paths on all machines",
        )
    different = [f"--{name}" for name, value in values[0].items() if any(each[name] != value for each in values)]
    if different:
        raise UserError(
            f"the processes have different options: {listed(different, 5)}",
            hint="start all machines with the same options",
        )


def _values(options: Options) -> dict[str, Any]:
    """The options that must be the same in all processes; folders and file names may differ between machines."""
    return {
        field.name: getattr(group, field.name)
        for group in options
        for field in option_fields(type(group))
        if field.kind is not str or field.spec.choices
    }


def of_first_process(value: T) -> T:
    """The value that the first process gives, in all of them."""
    (first,) = broadcast_object_list([value])
    return first


def file_shares(accelerator: Accelerator) -> Iterator[tuple[int, int]]:
    """(rank, number of processes) of each pass in which missing cache files are written.

    First all processes split the files between them; then, with several machines, those of each machine do: it may not
    see the files that the others have written.
    """
    yield accelerator.process_index, accelerator.num_processes
    local_rank, num_local = local_rank_and_count()
    if num_local < accelerator.num_processes:
        yield local_rank, num_local
