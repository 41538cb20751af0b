"""Imports Diffusers without packages that it would import and that nothing here reaches through it.

These are bitsandbytes, PEFT and SciPy: a third of the time to import all that a training needs. What uses one of them
(8-bit optimizers) imports it itself, when it is asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

UNUSED_BY_DIFFUSERS = ("bitsandbytes", "peft", "scipy")


def import_diffusers() -> None:
    """For programs, before anything else imports Diffusers, which is then without its parts for these packages.

    Where something has imported it, it knows of them already and is left as it is.
    """
    if "diffusers" in sys.modules:
        return
    with without_packages(UNUSED_BY_DIFFUSERS):
        from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: F401


@contextmanager
def without_packages(names: tuple[str, ...]) -> Iterator[None]:
    """Lets imports behave as if these packages were not installed, except those that are imported already.

    An entry None in `sys.modules` says so to `import` and to `importlib.util.find_spec`.
    """
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
