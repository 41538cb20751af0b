"""Dataset preview instead of training: the page of --debug_dataset or the window of --debug_dataset_window."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from library.cli.logging import Message, progress_bar
from library.cli.parser import Options
from library.data.batches.plan import TrainingData
from library.dataset_report.before_cleaning import Cleaning, compare
from library.dataset_report.caption_length import TokenLimit
from library.dataset_report.options import ReportOptions
from library.dataset_report.page import MOST_IMAGES, Report, write_page
from library.dataset_report.sampled_items import DrawSettings
from library.models.options import PromptOptions
from library.models.text.tokenizer import load_tokenizer

logger = logging.getLogger(__name__)

_PAGE = "index.html"


def look_at_data(
    options: Options,
    data: TrainingData,
    messages: Sequence[Message],
    draw: DrawSettings,
    *,
    num_epochs: int,
    folder: Path,
) -> None:
    """Writes the page of `--debug_dataset` and opens the window of `--debug_dataset_window`, whichever is enabled.

    `messages`: warnings from loading the data. `draw`: seed and steps of the random draws. `folder`: for the page.
    Raises `UserError` if the page cannot be written, windows cannot be opened, or there is nothing to compare with the
    metadata file of `--debug_dataset_before`.
    """
    if options[ReportOptions].debug_dataset:
        before = options[ReportOptions].debug_dataset_before
        cleaning = None if before is None else compare(data, before)
        _write_page(options[PromptOptions], data, messages, draw, folder / _PAGE, cleaning)
    if options[ReportOptions].debug_dataset_window:
        from library.dataset_report.window import open_window, show_in_window, step_through

        open_window()
        step_through(data, draw, num_epochs, partial(show_in_window, masks=draw.masks))


def _write_page(
    prompts: PromptOptions,
    data: TrainingData,
    messages: Sequence[Message],
    draw: DrawSettings,
    page: Path,
    cleaning: Cleaning | None,
) -> None:
    tokenizer = load_tokenizer(None, pads_with_end=True)
    count = partial(tokenizer.count, weighted=prompts.weighted_captions)
    report = Report(data, draw, TokenLimit(count, prompts.max_token_length), tuple(messages), cleaning)
    num_images = sum(len(dataset.records) for dataset in data.datasets)
    with progress_bar(min(num_images, MOST_IMAGES), "reading images") as progress:
        write_page(report, page, progress.update)
    logger.info("dataset preview written to %s (open it in a browser)", page.absolute())
