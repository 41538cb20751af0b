"""The page that shows a dataset: one HTML file that needs nothing else, not even a network."""

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
from library.data.records import ImageRecord, Item
from library.dataset_report import tables
from library.dataset_report.caption_length import CaptionLength, TokenLimit, measure_caption
from library.dataset_report.cards import Card, card_html, short_name, size_text
from library.dataset_report.duplicates import same_files, same_looks
from library.dataset_report.findings import ReportWarnings, collect_findings
from library.dataset_report.rendering import Rendered, Thumbnail, longest_side, render_all
from library.dataset_report.sampled_items import DrawSettings, ImageId, choose_images, draw_uses, unused_item
from library.dataset_report.statistics import totals

MOST_IMAGES = 20_000
_HERE = Path(__file__).parent
_TITLE = "What training sees"


@dataclass(frozen=True)
class Report:
    """What a page is made from."""

    data: TrainingData
    draw: DrawSettings
    tokens: TokenLimit
    messages: Sequence[Message] = ()  # what reading the data has said


@dataclass(frozen=True)
class _Looked:
    """What came of decoding the images and measuring the captions."""

    images: Sequence[ImageId]
    captions: Mapping[ImageId, Sequence[str]]  # different ones, as drawn
    items: Mapping[ImageId, Item]  # the use that is shown
    lengths: Mapping[str, CaptionLength]
    sight_sizes: Sequence[int]  # bytes of each image's HTML in the spool
    findings: ReportWarnings


def write_page(report: Report, target: Path, advance: Callable[[int], object], most: int = MOST_IMAGES) -> None:
    """Writes the page as a whole or not at all; images go through a temporary file, not through memory.

    `advance` is told when images are done. Raises `UserError` when the folder cannot be written to.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent) as spool:
            looked = _look_at_images(report, spool, advance, most)
            spool.seek(0)
            with (
                atomic_path(target) as temporary,
                open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as page,
            ):
                for part in _page_parts(report, looked, spool):
                    page.write(part)
    except OSError as error:
        message = f"the page {target} cannot be written: {error.strerror or error}"
        raise UserError(message, hint="name another folder with --debug_dataset_dir") from None


def _look_at_images(report: Report, spool: IO[bytes], advance: Callable[[int], object], most: int) -> _Looked:
    data = report.data
    images = choose_images(data, most)
    uses = draw_uses(data, images, report.draw)
    items = {image: uses[image][0] if uses.get(image) else _unused(data, image) for image in images}
    captions = {
        image: list(dict.fromkeys(item.caption for item in uses.get(image) or [items[image]])) for image in images
    }
    thumbnails = [Thumbnail(items[image], _flips(data, image)) for image in images]
    rendered = render_all(thumbnails, longest_side(sum(1 + thumbnail.flips for thumbnail in thumbnails)))
    sizes, looks, unreadable = [], [], {}
    for image, seen in zip(images, rendered, strict=True):
        sizes.append(_spool(spool, seen))
        if seen.look is not None:
            looks.append((image, seen.look))
        elif items[image].latent_key.prepared_path is None:
            unreadable[image] = ""
        advance(1)
    lengths = {text: measure_caption(text, report.tokens) for each in captions.values() for text in each}
    seen_notes = {
        "unreadable": unreadable,
        "long": _long_notes(captions, lengths, report.tokens.limit),
        **_twins(data, looks),
    }
    return _Looked(images, captions, items, lengths, sizes, collect_findings(data, seen_notes))


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
    return {image: f"{count} tokens, {limit} are read" for image, count in longest.items() if count > limit}


def _twins(data: TrainingData, looks: Sequence[tuple[ImageId, np.ndarray]]) -> dict[str, dict[ImageId, str]]:
    same = same_files(data)
    seen_paths: dict[str, ImageId] = {}
    different = []  # files, each once
    for image, look in looks:
        path = _record(data, image).path
        is_copy = path in seen_paths or any(other in seen_paths for other in same.get(image, ()))
        seen_paths.setdefault(path, image)
        if not is_copy:
            different.append((image, look))
    alike: dict[ImageId, str] = {}
    for image, twin in same_looks(different).items():
        alike[image] = f"looks like {short_name(_record(data, twin))}"
        alike.setdefault(twin, f"looks like {short_name(_record(data, image))}")
    return {"duplicate": {image: _same_as(others) for image, others in same.items()}, "similar": alike}


def _same_as(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"same content as {Path(paths[0]).name}{more}"


def _page_parts(report: Report, looked: _Looked, spool: IO[bytes]) -> Iterator[str]:
    data = report.data
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    yield _head(script)
    yield _lead(report)
    yield tables.totals_html(totals(data), _training_sizes(data))
    yield from tables.findings_html(looked.findings, data, set(looked.images), report.messages)
    yield from tables.buckets_html(data)
    yield from tables.tags_html(data)
    yield from _images_html(report, looked, spool)
    yield f"</main>\n<script>{script}</script>\n</body></html>\n"


def _head(script: str) -> str:
    """With a policy that lets the browser fetch nothing, and run this script only."""
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    style = (_HERE / "page.css").read_text(encoding="utf-8")
    links = {"totals": "Totals", "findings": "Warnings", "buckets": "Buckets", "tags": "Tags", "images": "Images"}
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
        f"<h1>{_TITLE}</h1>\n<p>Every image as it reaches the model: turned upright, resized, cropped. "
        f"Random crops, colours and captions are {seed}.</p>\n"
    )


def _training_sizes(data: TrainingData) -> list[str]:
    return list(dict.fromkeys(size_text(dataset.config.resolution) for dataset in data.datasets))


def _images_html(report: Report, looked: _Looked, spool: IO[bytes]) -> Iterator[str]:
    data = report.data
    total = sum(len(dataset.records) for dataset in data.datasets)
    yield '<section id="images"><h2>Images</h2>\n'
    if len(looked.images) < total:
        yield f'<p class="notice">{len(looked.images):,} of {total:,} images are shown, spread evenly.'
        yield " What their pixels and drawn captions tell was looked at in these alone.</p>\n"
    num_uses = [np.bincount(dataset.items, minlength=len(dataset.records)) for dataset in data.datasets]
    entries = zip(looked.images, looked.sight_sizes, strict=True)
    for (place, subset_index), group in itertools.groupby(entries, lambda entry: _group_of(data, entry[0])):
        dataset = data.datasets[place]
        yield f'<section class="group"><h3>{tables.dataset_title(place, dataset.config)} · '
        yield f'{tables.subset_title(dataset.config.subsets[subset_index])}</h3><div class="grid">\n'
        for image, size in group:
            record = dataset.records[image.record]
            card = Card(
                image=image,
                record=record,
                placement=looked.items[image].latent_key.placement,
                class_tokens=dataset.subset_of(record).class_tokens,
                num_uses=int(num_uses[place][image.record]),
                captions=looked.captions[image],
                marks=looked.findings.marks(image),
            )
            yield card_html(card, spool.read(size).decode("utf-8"), looked.lengths, report.tokens.limit)
        yield "</div></section>\n"
    yield '<p id="none" class="notice" hidden>No image fits.</p></section>\n'


def _group_of(data: TrainingData, image: ImageId) -> tuple[int, int]:
    return image.dataset, _record(data, image).subset_index
