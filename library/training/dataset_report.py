"""Looking at the data instead of training, and what is said of captions before training."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

from library.cli.parser import Options
from library.data.captions import final_caption, with_whole_captions
from library.data.options import ReportOptions
from library.data.plan import TrainingData
from library.data.randomness import keyed_random
from library.data.report.caption_length import TokenLimit
from library.data.report.drawn import Draw
from library.data.report.page import MOST_PICTURES, Report, write_page
from library.models.family import ModelFamily
from library.models.options import PromptOptions
from library.models.tokenizer import load_tokenizer
from library.training.options import OutputOptions, TrainingOptions
from library.training.preflight import PreflightResult
from library.training.progress import progress_bar
from library.training.train_plan import TrainPlan, make_train_plan

logger = logging.getLogger(__name__)

_PAGE = "index.html"
_MOST_CAPTIONS = 20_000
_NUM_EXAMPLES = 3
_EXAMPLE_LENGTH = 60


def look_at_data(options: Options, preflight: PreflightResult) -> None:
    """Writes the page of `--debug_dataset` and opens the window of `--debug_dataset_window`, whichever is asked for.

    Raises `UserError` when the page cannot be written, and where windows cannot be opened.
    """
    report, training = options[ReportOptions], options[TrainingOptions]
    seed = preflight.state.header.seed if preflight.state is not None else training.seed
    plan = make_train_plan(
        training,
        options[OutputOptions],
        seed=seed or 0,
        num_micro_batches=preflight.data.num_micro_batches,
        num_processes=1,
    )
    draw = Draw(plan.seed, seed is not None, plan.clock)
    if report.debug_dataset:
        _write_page(options, preflight, draw)
    if report.debug_dataset_window:
        _show_window(preflight.data, draw, plan)


def _write_page(options: Options, preflight: PreflightResult, draw: Draw) -> None:
    prompts = options[PromptOptions]
    tokenizer = load_tokenizer(None, pads_with_end=True)
    count = partial(tokenizer.count, weighted=prompts.weighted_captions)
    report = Report(
        preflight.data, draw, TokenLimit(count, prompts.max_token_length), messages=preflight.data_warnings
    )
    num_pictures = sum(len(dataset.records) for dataset in preflight.data.datasets)
    page = _folder(options) / _PAGE
    with progress_bar(min(num_pictures, MOST_PICTURES), "looking at pictures") as progress:
        write_page(report, page, progress.update)
    logger.info("The dataset is shown in %s (open it in a browser)", page.absolute())


def _folder(options: Options) -> Path:
    folder, output_dir = options[ReportOptions].debug_dataset_dir, options[OutputOptions].output_dir
    if folder is not None:
        return Path(folder)
    assert output_dir is not None, "preflight looked at it"
    return Path(output_dir) / "dataset"


def _show_window(data: TrainingData, draw: Draw, plan: TrainPlan) -> None:
    from library.data.report.window import open_window, show_in_window, step_through

    open_window()
    step_through(data, draw, plan.num_epochs, show_in_window)


def warn_long_captions(data: TrainingData, family: ModelFamily, limit: int) -> None:
    """Says once how many captions have more tokens than are read; looks at the first 20,000 different ones."""
    captions = list(islice(dict.fromkeys(_whole_captions(data)), _MOST_CAPTIONS))
    lengths = zip(captions, family.count_tokens(captions), strict=True)
    long = [(caption, count) for caption, count in lengths if count > limit]
    if long:
        examples = "; ".join(f"{caption[:_EXAMPLE_LENGTH]!r}... ({count})" for caption, count in long[:_NUM_EXAMPLES])
        logger.warning(
            "%d captions have more than the %d tokens that are read, the rest of them is cut off: %s"
            " (--debug_dataset shows all)",
            len(long), limit, examples,
        )  # fmt: skip


def _whole_captions(data: TrainingData) -> Iterator[str]:
    """Each caption with its prefix and suffix, in its order and with nothing dropped."""
    for dataset in data.datasets:
        whole = [with_whole_captions(subset) for subset in dataset.config.subsets]
        for record in dataset.records:
            rng = keyed_random("caption length", record.caption)
            yield final_caption(record.caption, whole[record.subset_index], rng)
