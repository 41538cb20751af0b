"""Files that were made for another kind of model than the one that is trained on. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from library.cli.checks import Findings
from library.methods.options import NetworkOptions, TextualInversionOptions
from library.models.families import base_problem
from library.models.options import ModelOptions
from library.training.context import Context


def adapter_file_findings(context: Context) -> Findings:
    """`--network_weights` and `--base_weights`."""
    options = context[NetworkOptions]
    starts = [] if options.network_weights is None else [("--network_weights", options.network_weights)]
    return _findings(context, [*starts, *(("--base_weights", file) for file in options.base_weights)])


def embedding_file_findings(context: Context) -> Findings:
    """`--weights`."""
    weights = context[TextualInversionOptions].weights
    return _findings(context, [] if weights is None else [("--weights", weights)])


def _findings(context: Context, files: Iterable[tuple[str, str]]) -> Findings:
    if not context.trains:
        return
    if context.model is not None:
        title = context.model.detected.title
    elif context.family is not None:  # of a model on the Hub the script knows the family
        title = context.family.title
    else:
        return
    for flag, file in files:
        problem = base_problem(flag, file, title, str(context[ModelOptions].pretrained_model_name_or_path))
        if problem is not None:
            yield problem
