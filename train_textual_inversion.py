"""Teaches a Stable Diffusion model a new word (textual inversion; with --xti each of its layers its own)."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from library.cli.entry import run_entry
from library.cli.parser import parse_options
from library.data.options import CachingOptions, DatasetOptions, ReportOptions
from library.diffusion.options import NoiseOptions
from library.methods.options import TextualInversionOptions
from library.methods.word_captions import captions_with_word, text_caching_problems
from library.models.options import MemoryOptions, MetadataOptions, ModelOptions, PromptOptions
from library.training.options import (
    AverageOptions,
    LoggingOptions,
    OptimizerOptions,
    OutputOptions,
    SampleOptions,
    TrainingOptions,
    ValidationOptions,
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
    TextualInversionOptions,
    TrainingOptions,
    OptimizerOptions,
    NoiseOptions,
    AverageOptions,
    ValidationOptions,
    SampleOptions,
    LoggingOptions,
    ReportOptions,
)


def train(argv: Sequence[str]) -> None:
    preflight = Preflight(adapt_data=captions_with_word)
    options = parse_options(
        argv,
        OPTION_GROUPS,
        program="train_textual_inversion.py",
        description=__doc__,
        checks=[*preflight.checks(), text_caching_problems],
    )
    # heavy imports only now: --help and mistakes are answered without them
    if options[ReportOptions].replaces_training:
        from library.training.dataset_report import look_at_data

        look_at_data(options, preflight.result())
        return
    from library.methods.textual_inversion import TextualInversion
    from library.training.run import run_training

    run_training(options, preflight.result(), TextualInversion(options[TextualInversionOptions]))


if __name__ == "__main__":
    sys.exit(run_entry(lambda: train(sys.argv[1:])))
