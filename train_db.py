"""Trains a whole Stable Diffusion model on pictures of a subject, beside pictures of its class (DreamBooth)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from library.cli.entry import run_entry
from library.cli.parser import Options
from library.methods.options import DreamBoothOptions
from library.methods.whole_model_checks import chosen_ending, chosen_format, whole_model_checks
from library.models.options import DreamBoothPromptOptions
from library.training.script import TrainingScript, option_groups, run_script

if TYPE_CHECKING:
    from library.methods.whole_model import WholeModel

OPTION_GROUPS = option_groups(DreamBoothOptions, prompt_options=DreamBoothPromptOptions)


def make_method(options: Options) -> WholeModel:
    from library.methods.whole_model import WholeModel

    return WholeModel(options[DreamBoothOptions], chosen_format(options))


def train(argv: Sequence[str]) -> None:
    script = TrainingScript(
        "train_db.py",
        __doc__,
        OPTION_GROUPS,
        make_method,
        checks=whole_model_checks(),
        data_source="folder",
        ending_of=chosen_ending,
    )
    run_script(script, argv)


if __name__ == "__main__":
    sys.exit(run_entry(lambda: train(sys.argv[1:])))
