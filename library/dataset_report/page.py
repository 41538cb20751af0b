"""The HTML page of --debug_dataset: one self-contained file, viewable offline; its templates are `*.html.jinja`."""

from __future__ import annotations

import base64
import hashlib
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from library.cli.atomic_files import atomic_path
from library.cli.errors import UserError
from library.cli.logging import Message
from library.data.batches.plan import TrainingData
from library.data.config.config import DatasetConfig, SubsetConfig
from library.data.records import ImageRecord, Placement, size_text
from library.dataset_report.before_cleaning import Change, Cleaning
from library.dataset_report.caption_length import TokenLimit
from library.dataset_report.preview import Preview, render_images
from library.dataset_report.rendering import Rendered, read_thumbnail
from library.dataset_report.report_warnings import KINDS, cropped_fraction, short_name
from library.dataset_report.sampled_items import DrawSettings, ImageId, choose_images
from library.dataset_report.statistics import bucket_rows, changed_settings, images_per_subset, tag_counts, totals
from library.html_pages.templates import page_environment, page_style

if TYPE_CHECKING:
    from jinja2 import Template

MOST_IMAGES = 20_000
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Report:
    """The input of a page."""

    data: TrainingData
    draw: DrawSettings
    tokens: TokenLimit
    messages: Sequence[Message] = ()  # warnings from loading the data
    cleaning: Cleaning | None = None  # what has changed since an earlier metadata file


@dataclass(frozen=True)
class Card:
    """What the page shows of one image."""

    image: ImageId
    record: ImageRecord
    placement: Placement
    class_tokens: str | None
    num_uses: int  # per epoch
    captions: Sequence[str]  # distinct ones, as drawn
    marks: Mapping[str, str]  # kinds of warnings, each with a note
    thumbnail: Rendered
    changes: Sequence[Change]  # of caption and tags since an earlier metadata file


@dataclass(frozen=True)
class CardGroup:
    """The images of a subset, one after the other; `number` is that of its dataset, from 1."""

    number: int
    config: DatasetConfig
    subset: SubsetConfig
    cards: Iterator[Card]


def write_page(report: Report, target: Path, advance: Callable[[int], object], most: int = MOST_IMAGES) -> None:
    """Writes the page atomically; images go through a temporary file, not through memory.

    `advance` is called after each image, for the progress bar. Raises `UserError` if the folder is not writable.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent) as spool:
            images = choose_images(report.data, most)
            preview = render_images(report.data, report.draw, report.tokens, images, spool, advance)
            spool.seek(0)
            with (
                atomic_path(target) as temporary,
                open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as page,
            ):
                page.writelines(_page_parts(report, preview, spool))
    except OSError as error:
        message = f"the page {target} cannot be written: {error.strerror or error}"
        raise UserError(message, hint="give another folder with --debug_dataset_dir") from None


def _page_parts(report: Report, preview: Preview, spool: IO[bytes]) -> Iterator[str]:
    """The page, piece by piece; images are read from `spool` as their cards are reached."""
    data = report.data
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    return _page_template().generate(
        style=page_style(_HERE / "page.css"),
        script=script,
        script_digest=base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii"),
        draw=report.draw,
        data=data,
        totals=totals(data),
        kinds=KINDS,
        notes=preview.warnings.notes,
        messages=report.messages,
        tags=tag_counts(data),
        shown=set(preview.images),
        num_images=sum(len(dataset.records) for dataset in data.datasets),
        cleaning=report.cleaning,
        groups=_groups(report, preview, spool),
        lengths=preview.lengths,
        limit=report.tokens.limit,
    )


def _groups(report: Report, preview: Preview, spool: IO[bytes]) -> Iterator[CardGroup]:
    """The groups and their cards are to be taken in order: `spool` holds one thumbnail after the other."""
    data, changes = report.data, {} if report.cleaning is None else report.cleaning.changes
    num_uses = [np.bincount(dataset.items, minlength=len(dataset.records)) for dataset in data.datasets]

    def card_of(image: ImageId) -> Card:
        dataset = data.datasets[image.dataset]
        record = dataset.records[image.record]
        return Card(
            image=image,
            record=record,
            placement=preview.items[image].latent_key.placement,
            class_tokens=dataset.subset_of(record).class_tokens,
            num_uses=int(num_uses[image.dataset][image.record]),
            captions=preview.captions[image],
            marks=preview.warnings.marks(image),
            thumbnail=read_thumbnail(spool.readline()),
            changes=changes.get(record.path, ()),
        )

    def group_of(image: ImageId) -> tuple[int, int]:
        return image.dataset, data.datasets[image.dataset].records[image.record].subset_index

    for (dataset_index, subset_index), images in itertools.groupby(preview.images, group_of):
        config = data.datasets[dataset_index].config
        yield CardGroup(dataset_index + 1, config, config.subsets[subset_index], map(card_of, images))


def _page_template() -> Template:
    environment = page_environment(_HERE)
    environment.filters |= {
        "thousands": "{:,}".format,
        "percent": "{:.1%}".format,
        "size": size_text,
        "short_name": short_name,
        "cropped_fraction": cropped_fraction,
        "changed_settings": changed_settings,
        "bucket_rows": bucket_rows,
        "images_per_subset": images_per_subset,
    }
    return environment.get_template("page.html.jinja")
