"""Trains an embedding for a Stable Diffusion model (textual inversion; with --xti one for each of its layers)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from library.cli.checks import Check
from library.cli.entry import run_entry
from library.cli.parser import Options
from library.methods.base_checks import embedding_file_findings
from library.methods.options import TextualInversionOptions
from library.methods.token_captions import captions_with_token, xti_findings
from library.training.context import TrainingScript
from library.training.script import option_groups, run_script

if TYPE_CHECKING:
    from library.methods.textual_inversion import TextualInversion

OPTION_GROUPS = option_groups(TextualInversionOptions)


def make_method(options: Options) -> TextualInversion:
    from library.methods.textual_inversion import TextualInversion

    return TextualInversion(options[TextualInversionOptions])


SCRIPT = TrainingScript(
    "train_textual_inversion.py",
    __doc__,
    OPTION_GROUPS,
    TextualInversionOptions,
    make_method,
    tracker_project="textual_inversion",
    usual_learning_rate=5e-3,
    ending_of=lambda options: f".{options[TextualInversionOptions].save_model_as}",
    checks=(Check("options", xti_findings), Check("options", embedding_file_findings)),
    adapt_data=captions_with_token,
)


def train(argv: Sequence[str]) -> None:
    run_script(SCRIPT, argv)


if __name__ == "__main__":
    sys.exit(run_entry(lambda: train(sys.argv[1:])))
