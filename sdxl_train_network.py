"""Trains a LoRA, or another adapter network, for a Stable Diffusion XL model: train_network.py for that family."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import train_network
from library.cli.entry import run_entry
from library.training.script import run_script

OPTION_GROUPS = train_network.OPTION_GROUPS
SCRIPT = replace(train_network.SCRIPT, program="sdxl_train_network.py", description=__doc__, family="sdxl")


def train(argv: Sequence[str]) -> None:
    run_script(SCRIPT, argv)


if __name__ == "__main__":
    sys.exit(run_entry(lambda: train(sys.argv[1:])))
