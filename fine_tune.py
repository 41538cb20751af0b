"""Trains all weights of a Stable Diffusion model on images listed in a metadata file (fine-tuning)."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from library.cli.entry import run_entry
from library.methods.options import FineTuningOptions
from library.methods.whole_model_script import whole_model_script
from library.training.script import option_groups, run_script

OPTION_GROUPS = option_groups(FineTuningOptions)
SCRIPT = whole_model_script("fine_tune.py", __doc__, OPTION_GROUPS, "metadata", tracker_project="finetuning")


def train(argv: Sequence[str]) -> None:
    run_script(SCRIPT, argv)


if __name__ == "__main__":
    sys.exit(run_entry(lambda: train(sys.argv[1:])))
