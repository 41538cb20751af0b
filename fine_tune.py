"""Trains a whole Stable Diffusion model on pictures that a metadata file describes (fine-tuning)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from library.cli.entry import run_entry
from library.cli.parser import Options
from library.methods.options import FineTuningOptions
from library.methods.whole_model_checks import chosen_ending, chosen_format, whole_model_checks
from library.training.script import TrainingScript, option_groups, run_script

if TYPE_CHECKING:
    from library.methods.whole_model import WholeModel

OPTION_GROUPS = option_groups(FineTuningOptions)


def make_method(options: Options) -> WholeModel:
    from library.methods.whole_model import WholeModel

    return WholeModel(options[FineTuningOptions], chosen_format(options))


def train(argv: Sequence[str]) -> None:
    script = TrainingScript(
        "fine_tune.py",
        __doc__,
        OPTION_GROUPS,
        make_method,
        checks=whole_model_checks(),
        data_source="metadata",
        ending_of=chosen_ending,
    )
    run_script(script, argv)


if __name__ == "__main__":
    sys.exit(run_entry(lambda: train(sys.argv[1:])))
