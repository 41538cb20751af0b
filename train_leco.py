"""Trains a LoRA that erases, enhances or slides concepts of a Stable Diffusion model, from prompts alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from library.cli.entry import run_entry
from library.methods.concepts.script import OPTION_GROUPS as OPTION_GROUPS
from library.methods.concepts.script import concept_script
from library.training.script import run_script

SCRIPT = concept_script("train_leco.py", __doc__)


def train(argv: Sequence[str]) -> None:
    run_script(SCRIPT, argv)


if __name__ == "__main__":
    sys.exit(run_entry(lambda: train(sys.argv[1:])))
