"""Captions of textual inversion: templates in place of the images' own, and a check that captions have the token.

The templates are those of "An Image is Worth One Word" (Gal et al., 2208.01618), appendix, without the two style
templates that it lists twice.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from library.cli.errors import UserError, plural

if TYPE_CHECKING:
    from library.data.batches.plan import PlannedDataset, TrainingData

logger = logging.getLogger(__name__)

_PLACEHOLDER = "{}"
_NUM_EXAMPLES = 3
_EXAMPLE_LENGTH = 60

OBJECT_TEMPLATES = (
    "a photo of a {}",
    "a rendering of a {}",
    "a cropped photo of the {}",
    "the photo of a {}",
    "a photo of a clean {}",
    "a photo of a dirty {}",
    "a dark photo of the {}",
    "a photo of my {}",
    "a photo of the cool {}",
    "a close-up photo of a {}",
    "a bright photo of the {}",
    "a cropped photo of a {}",
    "a photo of the {}",
    "a good photo of the {}",
    "a photo of one {}",
    "a close-up photo of the {}",
    "a rendition of the {}",
    "a photo of the clean {}",
    "a rendition of a {}",
    "a photo of a nice {}",
    "a good photo of a {}",
    "a photo of the nice {}",
    "a photo of the small {}",
    "a photo of the weird {}",
    "a photo of the large {}",
    "a photo of a cool {}",
    "a photo of a small {}",
)

STYLE_TEMPLATES = (
    "a painting in the style of {}",
    "a rendering in the style of {}",
    "a cropped painting in the style of {}",
    "the painting in the style of {}",
    "a clean painting in the style of {}",
    "a dirty painting in the style of {}",
    "a dark painting in the style of {}",
    "an image in the style of {}",
    "a cool painting in the style of {}",
    "a close-up painting in the style of {}",
    "a bright painting in the style of {}",
    "a cropped painting in the style of {}",
    "a good painting in the style of {}",
    "a close-up painting in the style of {}",
    "a rendition in the style of {}",
    "a nice painting in the style of {}",
    "a small painting in the style of {}",
    "a weird painting in the style of {}",
    "a large painting in the style of {}",
)


def with_templates(data: TrainingData, templates: Sequence[str], token: str) -> TrainingData:
    """The data with captions made from `templates`; regularisation images keep their own.

    Validation images always have the first template.
    """
    captions = tuple(template.replace(_PLACEHOLDER, token) for template in templates)
    held_out = data.validation
    if held_out is not None:
        held_out = replace(held_out, datasets=tuple(_with_captions(each, captions[:1]) for each in held_out.datasets))
    return replace(data, datasets=tuple(_with_captions(each, captions) for each in data.datasets), validation=held_out)


def _with_captions(dataset: PlannedDataset, captions: tuple[str, ...]) -> PlannedDataset:
    subsets = (each if each.is_reg else replace(each, caption_templates=captions) for each in dataset.config.subsets)
    changed = copy.copy(dataset)
    changed.config = replace(dataset.config, subsets=tuple(subsets))
    return changed


def check_token_in_captions(data: TrainingData, token: str, flag: str) -> None:
    """Raises `UserError` when no caption of a training image has the token; warns when some have not."""
    captions = [pair for dataset in data.datasets for pair in _captions(dataset)]
    without = [(key, caption) for key, caption in captions if token.lower() not in caption.lower()]
    if not without:
        return
    examples = "; ".join(f"{key}: {caption[:_EXAMPLE_LENGTH]!r}" for key, caption in without[:_NUM_EXAMPLES])
    if len(without) < len(captions):
        logger.warning(
            "%d of %s do not have the token %s, whose images do not train it: %s",
            len(without), plural(len(captions), "caption"), token, examples,
        )  # fmt: skip
        return
    raise UserError(
        f"{flag} {token} is in none of {plural(len(captions), 'caption')}, such as {examples}",
        hint="add the token to the captions, or give --use_object_template or --use_style_template",
    )


def _captions(dataset: PlannedDataset) -> Iterator[tuple[str, str]]:
    """Key and full caption of each training image."""
    for record in dataset.records:
        subset = dataset.subset_of(record)
        if not record.is_reg:
            parts = (subset.caption_prefix, record.caption, subset.caption_suffix)
            yield record.key, " ".join(part for part in parts if part)
