"""Python's garbage collector, paused while a great many objects are made that all stay."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Without garbage collection: it would search what is made for cycles again and again, more with each image.

    At its end all objects count as old, so that the next collection of young ones does not search them either.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            if not gc.get_freeze_count():  # else others have frozen what is to stay so
                gc.freeze()
                gc.unfreeze()  # into the oldest generation
            gc.enable()
