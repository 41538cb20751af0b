"""Trains all weights of a Stable Diffusion XL model, on folders of images or on those of a metadata file."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from library.cli.entry import run_entry
from library.methods.options import FineTuningOptions
from library.methods.whole_model_script import whole_model_script
from library.training.script import option_groups, run_script

OPTION_GROUPS = option_groups(FineTuningOptions)
SCRIPT = whole_model_script("sdxl_train.py", __doc__, OPTION_GROUPS, None, tracker_project="finetuning", family="sdxl")


def train(argv: Sequence[str]) -> None:
    run_script(SCRIPT, argv)


if __name__ == "__main__":
    sys.exit(run_entry(lambda: train(sys.argv[1:])))
