"""Checks of textual inversion before anything is loaded: captions, and what the model family has. Imports no torch."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from library.cli.checks import Findings
from library.cli.errors import UserError
from library.cli.parser import Options
from library.dataset_report.options import ReportOptions
from library.methods.caption_templates import check_token_in_captions, with_templates
from library.methods.options import TextualInversionOptions

if TYPE_CHECKING:
    from library.data.batches.plan import TrainingData
    from library.training.context import Context

logger = logging.getLogger(__name__)


def xti_findings(context: Context) -> Findings:
    """`--xti` with a model whose cross-attention layers have no names in embedding files."""
    family = context.family if context[TextualInversionOptions].xti and context.trains else None
    if family is not None and not family.has_xti:
        yield UserError(
            f"--xti works with Stable Diffusion 1.x and 2.x; this model is {family.title}", "leave out --xti"
        )


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
