"""Several processes that train together: what is said when one of them is gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from library.cli.errors import LostProcess
from library.cli.launcher import is_launched

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
