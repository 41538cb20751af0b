"""What training a new word asks of captions. Imports no torch: it is looked at with the options."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from library.cli.errors import UserError
from library.cli.options import Problems
from library.cli.parser import Options
from library.data.config.options import CachingOptions
from library.dataset_report.options import ReportOptions
from library.methods.caption_templates import check_token_in_captions, with_templates
from library.methods.options import TextualInversionOptions

if TYPE_CHECKING:
    from library.data.batches.plan import TrainingData

logger = logging.getLogger(__name__)


def captions_with_token(options: Options, data: TrainingData) -> TrainingData:
    """The data with templates for captions where they are asked for.

    Raises `UserError` when no caption holds the word. With `--debug_dataset` it says so, and the page is made.
    """
    word = options.get(TextualInversionOptions)
    if word is None or word.token_string is None:  # reported by its own check
        return data
    if word.templates:
        return with_templates(data, word.templates, word.token_string)
    try:
        check_token_in_captions(data, word.token_string, "--token_string")
    except UserError as error:
        if not options[ReportOptions].replaces_training:
            raise
        logger.warning("%s", error)
    return data


def text_caching_problems(options: Options) -> Problems:
    """A text encoder whose vectors learn says something else after every step."""
    if options[CachingOptions].caches_text_encoder_outputs:
        yield UserError(
            "--cache_text_encoder_outputs: the new word changes what the text encoder says in every step",
            hint="leave out --cache_text_encoder_outputs and --cache_text_encoder_outputs_to_disk",
        )
