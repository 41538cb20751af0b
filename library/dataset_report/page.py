"""The HTML page of --debug_dataset: one self-contained file, viewable offline."""

from __future__ import annotations

import base64
import hashlib
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from library.cli.atomic_files import atomic_path
from library.cli.errors import UserError
from library.cli.logging import Message
from library.data.batches.plan import TrainingData
from library.data.records import ImageRecord, Item, size_text
from library.dataset_report import tables
from library.dataset_report.caption_length import CaptionLength, TokenLimit, measure_caption
from library.dataset_report.cards import Card, card_html, short_name
from library.dataset_report.duplicates import near_duplicates, same_files
from library.dataset_report.rendering import Rendered, Thumbnail, longest_side, render_all
from library.dataset_report.report_warnings import DatasetWarnings, collect_warnings
from library.dataset_report.sampled_items import DrawSettings, ImageId, choose_images, draw_uses, unused_item
from library.dataset_report.statistics import totals

MOST_IMAGES = 20_000
_HERE = Path(__file__).parent
_TITLE = "Dataset preview"


@dataclass(frozen=True)
class Report:
    """The input of a page."""

    data: TrainingData
    draw: DrawSettings
    tokens: TokenLimit
    messages: Sequence[Message] = ()  # warnings from loading the data


@dataclass(frozen=True)
class _Preview:
    """The results of decoding the images and tokenizing the captions."""

    images: Sequence[ImageId]
    captions: Mapping[ImageId, Sequence[str]]  # distinct ones, as drawn
    items: Mapping[ImageId, Item]  # the use that is shown
    lengths: Mapping[str, CaptionLength]
    thumbnail_sizes: Sequence[int]  # bytes of each image's HTML in the temporary file
    warnings: DatasetWarnings


def write_page(report: Report, target: Path, advance: Callable[[int], object], most: int = MOST_IMAGES) -> None:
    """Writes the page atomically; images go through a temporary file, not through memory.

    `advance` is called after each image, for the progress bar. Raises `UserError` if the folder is not writable.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent) as spool:
            preview = _render_images(report, spool, advance, most)
            spool.seek(0)
            with (
                atomic_path(target) as temporary,
                open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as page,
            ):
                for part in _page_parts(report, preview, spool):
                    page.write(part)
    except OSError as error:
        message = f"the page {target} cannot be written: {error.strerror or error}"
        raise UserError(message, hint="give another folder with --debug_dataset_dir") from None


def _render_images(report: Report, spool: IO[bytes], advance: Callable[[int], object], most: int) -> _Preview:
    data = report.data
    images = choose_images(data, most)
    uses = draw_uses(data, images, report.draw)
    items = {image: uses[image][0] if uses.get(image) else _unused(data, image) for image in images}
    captions = {
        image: list(dict.fromkeys(item.caption for item in uses.get(image) or [items[image]])) for image in images
    }
    thumbnails = [Thumbnail(items[image], _flips(data, image)) for image in images]
    rendered = render_all(thumbnails, longest_side(sum(1 + thumbnail.flips for thumbnail in thumbnails)))
    sizes, greys, unreadable = [], [], {}
    for image, seen in zip(images, rendered, strict=True):
        sizes.append(_spool(spool, seen))
        if seen.grey is not None:
            greys.append((image, seen.grey))
        elif items[image].latent_key.prepared_path is None:
            unreadable[image] = ""
        advance(1)
    lengths = {text: measure_caption(text, report.tokens) for each in captions.values() for text in each}
    seen_notes = {
        "unreadable": unreadable,
        "long": _long_notes(captions, lengths, report.tokens.limit),
        **_duplicate_notes(data, greys),
    }
    return _Preview(images, captions, items, lengths, sizes, collect_warnings(data, seen_notes))


def _unused(data: TrainingData, image: ImageId) -> Item:
    return unused_item(data.datasets[image.dataset], image.record)


def _record(data: TrainingData, image: ImageId) -> ImageRecord:
    return data.datasets[image.dataset].records[image.record]


def _flips(data: TrainingData, image: ImageId) -> bool:
    return data.datasets[image.dataset].subset_of(_record(data, image)).flip_aug


def _spool(spool: IO[bytes], seen: Rendered) -> int:
    return spool.write(seen.html.encode("utf-8", "backslashreplace"))


def _long_notes(
    captions: Mapping[ImageId, Sequence[str]], lengths: Mapping[str, CaptionLength], limit: int
) -> dict[ImageId, str]:
    longest = {image: max(lengths[text].num_tokens for text in each) for image, each in captions.items()}
    return {image: f"{count} tokens, truncated to {limit}" for image, count in longest.items() if count > limit}


def _duplicate_notes(data: TrainingData, greys: Sequence[tuple[ImageId, np.ndarray]]) -> dict[str, dict[ImageId, str]]:
    same = same_files(data)
    seen_paths: dict[str, ImageId] = {}
    different = []  # files, each once
    for image, grey in greys:
        path = _record(data, image).path
        is_copy = path in seen_paths or any(other in seen_paths for other in same.get(image, ()))
        seen_paths.setdefault(path, image)
        if not is_copy:
            different.append((image, grey))
    alike: dict[ImageId, str] = {}
    for image, twin in near_duplicates(different).items():
        alike[image] = f"looks like {short_name(_record(data, twin))}"
        alike.setdefault(twin, f"looks like {short_name(_record(data, image))}")
    return {"duplicate": {image: _same_as(others) for image, others in same.items()}, "similar": alike}


def _same_as(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"same content as {Path(paths[0]).name}{more}"


def _page_parts(report: Report, preview: _Preview, spool: IO[bytes]) -> Iterator[str]:
    data = report.data
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    yield _head(script)
    yield _lead(report)
    yield tables.totals_html(totals(data), _training_sizes(data))
    yield from tables.warnings_html(preview.warnings, data, set(preview.images), report.messages)
    yield from tables.buckets_html(data)
    yield from tables.tags_html(data)
    yield from _images_html(report, preview, spool)
    yield f"</main>\n<script>{script}</script>\n</body></html>\n"


def _head(script: str) -> str:
    """With a Content-Security-Policy: the browser fetches nothing and runs this script only."""
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    style = (_HERE / "page.css").read_text(encoding="utf-8")
    links = {"totals": "Totals", "warnings": "Warnings", "buckets": "Buckets", "tags": "Tags", "images": "Images"}
    anchors = "".join(f'<a href="#{target}">{title}</a>' for target, title in links.items())
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,"><title>{_TITLE}</title>\n'
        f'<style>{style}</style></head>\n<body><header><nav>{anchors}</nav><div class="controls" hidden>'
        '<input id="search" type="search" placeholder="Find in names and captions" '
        'aria-label="Find in names and captions"><select id="only" aria-label="Show">'
        '<option value="">all images</option></select><output id="count"></output></div></header>\n<main>\n'
    )


def _lead(report: Report) -> str:
    seed = (
        f"those of the first epochs with seed {report.draw.seed}"
        if report.draw.is_given
        else "examples: without --seed, each run draws others"
    )
    return (
        f"<h1>{_TITLE}</h1>\n<p>Every image as it is trained: EXIF orientation applied, resized, cropped. "
        f"Random crops, colours and captions are {seed}.</p>\n"
    )


def _training_sizes(data: TrainingData) -> list[str]:
    return list(dict.fromkeys(size_text(dataset.config.resolution) for dataset in data.datasets))


def _images_html(report: Report, preview: _Preview, spool: IO[bytes]) -> Iterator[str]:
    data = report.data
    total = sum(len(dataset.records) for dataset in data.datasets)
    yield '<section id="images"><h2>Images</h2>\n'
    if len(preview.images) < total:
        yield f'<p class="notice">{len(preview.images):,} of {total:,} images are shown, spread evenly.'
        yield " Warnings about pixels and random captions are for these only.</p>\n"
    num_uses = [np.bincount(dataset.items, minlength=len(dataset.records)) for dataset in data.datasets]
    entries = zip(preview.images, preview.thumbnail_sizes, strict=True)
    for (dataset_index, subset_index), group in itertools.groupby(entries, lambda entry: _group_of(data, entry[0])):
        dataset = data.datasets[dataset_index]
        yield f'<section class="group"><h3>{tables.dataset_title(dataset_index, dataset.config)} · '
        yield f'{tables.subset_title(dataset.config.subsets[subset_index])}</h3><div class="grid">\n'
        for image, size in group:
            record = dataset.records[image.record]
            card = Card(
                image=image,
                record=record,
                placement=preview.items[image].latent_key.placement,
                class_tokens=dataset.subset_of(record).class_tokens,
                num_uses=int(num_uses[dataset_index][image.record]),
                captions=preview.captions[image],
                marks=preview.warnings.marks(image),
            )
            yield card_html(card, spool.read(size).decode("utf-8"), preview.lengths, report.tokens.limit)
        yield "</div></section>\n"
    yield '<p id="none" class="notice" hidden>No matching images.</p></section>\n'


def _group_of(data: TrainingData, image: ImageId) -> tuple[int, int]:
    return image.dataset, _record(data, image).subset_index
