"""Trains an embedding for a Stable Diffusion XL model: train_textual_inversion.py for that family."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import train_textual_inversion
from library.cli.entry import run_entry
from library.training.script import run_script

_PROGRAM = "sdxl_train_textual_inversion.py"
OPTION_GROUPS = train_textual_inversion.OPTION_GROUPS
SCRIPT = replace(train_textual_inversion.SCRIPT, program=_PROGRAM, description=__doc__, family="sdxl")


def train(argv: Sequence[str]) -> None:
    run_script(SCRIPT, argv)


if __name__ == "__main__":
    sys.exit(run_entry(lambda: train(sys.argv[1:])))
