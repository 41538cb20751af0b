"""Trains a LoRA, or another adapter network, for a Stable Diffusion model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from library.cli.checks import Check
from library.cli.entry import run_entry
from library.cli.parser import Options
from library.methods.base_checks import adapter_file_findings
from library.methods.options import NetworkOptions
from library.training.context import TrainingScript
from library.training.script import option_groups, run_script

if TYPE_CHECKING:
    from library.methods.adapter import AdapterTraining

OPTION_GROUPS = option_groups(NetworkOptions)


def make_method(options: Options) -> AdapterTraining:
    from library.methods.adapter import AdapterTraining

    return AdapterTraining(options[NetworkOptions])


SCRIPT = TrainingScript(
    "train_network.py",
    __doc__,
    OPTION_GROUPS,
    NetworkOptions,
    make_method,
    tracker_project="network_train",
    usual_learning_rate=1e-4,
    checks=(Check("options", adapter_file_findings),),
    ending_of=lambda options: f".{options[NetworkOptions].save_model_as}",
)


def train(argv: Sequence[str]) -> None:
    run_script(SCRIPT, argv)


if __name__ == "__main__":
    sys.exit(run_entry(lambda: train(sys.argv[1:])))
