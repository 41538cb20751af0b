"""Trains a LoRA, or another adapter network, on a Stable Diffusion model."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from library.cli.entry import run_entry
from library.cli.parser import parse_options
from library.data.options import CachingOptions, DatasetOptions, ReportOptions
from library.diffusion.options import LossOptions, NoiseOptions
from library.methods.options import NetworkOptions
from library.models.options import MemoryOptions, MetadataOptions, ModelOptions, PromptOptions
from library.training.options import (
    LoggingOptions,
    OptimizerOptions,
    OutputOptions,
    SampleOptions,
    TrainingOptions,
)
from library.training.preflight import Preflight

OPTION_GROUPS = (
    ModelOptions,
    PromptOptions,
    MemoryOptions,
    DatasetOptions,
    CachingOptions,
    OutputOptions,
    MetadataOptions,
    NetworkOptions,
    TrainingOptions,
    OptimizerOptions,
    NoiseOptions,
    LossOptions,
    SampleOptions,
    LoggingOptions,
    ReportOptions,
)


def train(argv: Sequence[str]) -> None:
    preflight = Preflight()
    options = parse_options(
        argv, OPTION_GROUPS, program="train_network.py", description=__doc__, checks=preflight.checks()
    )
    # heavy imports only now: --help and mistakes are answered without them
    if options[ReportOptions].replaces_training:
        from library.training.dataset_report import look_at_data

        look_at_data(options, preflight.result())
        return
    from library.methods.adapter import AdapterNetwork
    from library.training.run import run_training

    run_training(options, preflight.result(), AdapterNetwork(options[NetworkOptions]))


if __name__ == "__main__":
    sys.exit(run_entry(lambda: train(sys.argv[1:])))
