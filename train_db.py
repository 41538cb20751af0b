"""Trains all weights of a Stable Diffusion model on images of a subject (DreamBooth)."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from library.cli.entry import run_entry
from library.methods.options import DreamBoothOptions
from library.methods.whole_model_script import whole_model_script
from library.models.options import DreamBoothPromptOptions
from library.training.script import option_groups, run_script

OPTION_GROUPS = option_groups(DreamBoothOptions, prompt_options=DreamBoothPromptOptions)
SCRIPT = whole_model_script("train_db.py", __doc__, OPTION_GROUPS, "folder", tracker_project="dreambooth")


def train(argv: Sequence[str]) -> None:
    run_script(SCRIPT, argv)


if __name__ == "__main__":
    sys.exit(run_entry(lambda: train(sys.argv[1:])))
