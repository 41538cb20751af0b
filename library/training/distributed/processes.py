"""Several processes that train together: whether they do the same, and what is said when one of them is gone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from library.cli.errors import LostProcess, UserError, listed
from library.cli.launcher import is_launched, local_rank_and_count
from library.cli.options import option_fields
from library.cli.parser import Options
from library.data.batches.plan import TrainingData

# what gloo, which has no class of its own for it, says of a process that ended or is silent
_LOST = ("gloo", "Connection closed by peer", "Connection reset by peer")


@contextmanager
def process_errors() -> Iterator[None]:
    """Turns the loss of another process into a `LostProcess`."""
    try:
        yield
    except RuntimeError as error:  # of which PyTorch's own for this are kinds
        is_known = isinstance(error, torch.distributed.DistError)
        if not is_launched() or not (is_known or any(sign in str(error) for sign in _LOST)):
            raise
        raise LostProcess(
            "another process of this run has ended, or does not answer",
            hint="what it said itself is the cause; where it was only slow, --ddp_timeout waits longer",
        ) from None


def check_same_run(accelerator: Accelerator, options: Options, data: TrainingData, num_steps_done: int) -> None:
    """Raises `UserError`, in all processes, where they would go different ways: machines have files of their own.

    num_steps_done: of the state to resume from. Call it before anything else that processes do together.
    """
    if accelerator.num_processes == 1:
        return
    places = hashlib.sha256("\n".join(key.path for key in data.latent_keys()).encode("utf-8", "surrogatepass")).digest()
    everyone = gather_object([(num_steps_done, data.digest(), places, _values(options))])
    steps, digests, all_places, values = zip(*everyone, strict=True)
    if len(set(steps)) > 1:
        raise UserError(
            f"the processes would begin behind different steps: {', '.join(map(str, sorted(set(steps))))}",
            hint="all machines must see the state of --resume: let them share --output_dir, or copy the state",
        )
    if len(set(digests)) > 1:
        raise UserError(
            "the processes see different images, captions or settings of the dataset",
            hint="give all machines the same files and options",
        )
    if len(set(all_places)) > 1:
        raise UserError(
            "the processes find the images in folders of different names",
            hint="let the same path lead to them on all machines",
        )
    different = [f"--{name}" for name, value in values[0].items() if any(each[name] != value for each in values)]
    if different:
        raise UserError(
            f"the processes have different options: {listed(different, 5)}",
            hint="start all machines with the same options",
        )


def _values(options: Options) -> dict[str, Any]:
    """The options that say what is done when; folders and names of files may be others on each machine."""
    return {
        field.name: getattr(group, field.name)
        for group in options
        for field in option_fields(type(group))
        if field.kind is not str or field.spec.choices
    }


def file_shares(accelerator: Accelerator) -> Iterator[tuple[int, int]]:
    """Process i of n, for each time that files are to be made where they are missing.

    All processes share them out first; then, where there are several machines, those of each machine: it may not see
    what the others have written.
    """
    yield accelerator.process_index, accelerator.num_processes
    local_rank, num_local = local_rank_and_count()
    if num_local < accelerator.num_processes:
        yield local_rank, num_local
