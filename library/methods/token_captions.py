"""Checks of textual inversion that concern captions. Imports no torch: they run with those of the options."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from library.cli.errors import UserError
from library.cli.parser import Options
from library.dataset_report.options import ReportOptions
from library.methods.caption_templates import check_token_in_captions, with_templates
from library.methods.options import TextualInversionOptions

if TYPE_CHECKING:
    from library.data.batches.plan import TrainingData

logger = logging.getLogger(__name__)


def captions_with_token(options: Options, data: TrainingData) -> TrainingData:
    """The data, with caption templates where the options ask for them.

    Raises `UserError` when no caption has the token; with `--debug_dataset` that is a warning.
    """
    inversion = options.get(TextualInversionOptions)
    if inversion is None or inversion.token_string is None:  # reported by its own check
        return data
    if inversion.templates:
        return with_templates(data, inversion.templates, inversion.token_string)
    try:
        check_token_in_captions(data, inversion.token_string, "--token_string")
    except UserError as error:
        if not options[ReportOptions].replaces_training:
            raise
        logger.warning("%s", error)
    return data
