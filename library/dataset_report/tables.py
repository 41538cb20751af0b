"""The upper part of the page: totals, warnings, buckets, tags."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence, Set
from html import escape

from library.cli.logging import Message
from library.data.batches.plan import PlannedDataset, TrainingData
from library.data.config.config import DatasetConfig, SubsetConfig
from library.data.records import ImageRecord, size_text
from library.dataset_report.cards import card_id, short_name
from library.dataset_report.report_warnings import KINDS, DatasetWarnings
from library.dataset_report.sampled_items import ImageId
from library.dataset_report.statistics import bucket_rows, tag_counts

_MOST_NAMES = 500  # in the list of a warning
_MOST_TAGS = 3_000
_SHOWN_ELSEWHERE = ("key_path", "resolution", "batch_size", "subsets", "image_dir", "metadata_file")


def totals_html(totals: Mapping[str, int], sizes: Sequence[str]) -> str:
    tiles = [f"<div><b>{number:,}</b><span>{title}</span></div>" for title, number in totals.items() if number]
    different = " ".join(f"<b>{size}</b>" for size in sizes)
    tiles.append(f'<div class="sizes">{different}<span>resolution</span></div>')
    return f'<section id="totals" class="tiles">{"".join(tiles)}</section>\n'


def warnings_html(
    warnings: DatasetWarnings, data: TrainingData, shown: Set[ImageId], messages: Sequence[Message]
) -> Iterator[str]:
    """`messages`: warnings from loading the data."""
    yield '<section id="warnings"><h2>Warnings</h2>\n'
    if not warnings.notes and not messages:
        yield '<p class="good">No warnings.</p>'
    if messages:
        items = "".join(f"<li>{escape(message.text)}{_details_html(message)}</li>" for message in messages)
        yield (
            f'<details class="warning" open><summary><b>{len(messages)}</b> Warnings from loading the data</summary>'
            f'<ul class="messages">{items}</ul></details>\n'
        )
    for kind, notes in warnings.notes.items():
        title, advice = KINDS[kind].title, KINDS[kind].advice
        yield (
            f'<details class="warning"><summary><b>{len(notes):,}</b> {title}</summary>'
            f'<p>{escape(advice)} <a class="only" href="#only={kind}" hidden>Show these images only</a></p><ul>'
        )
        for image in list(notes)[:_MOST_NAMES]:
            yield _warning_line(image, data.datasets[image.dataset].records[image.record], notes[image], shown)
        more = len(notes) - _MOST_NAMES
        yield f"{f'<li>and {more:,} more</li>' if more > 0 else ''}</ul></details>\n"
    yield "</section>\n"


def _details_html(message: Message) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in message.details[:_MOST_NAMES])
    return f"<ul>{items}</ul>" if items else ""


def _warning_line(image: ImageId, record: ImageRecord, note: str, shown: Set[ImageId]) -> str:
    name = f"<bdi>{escape(short_name(record))}</bdi>"
    if image in shown:
        name = f'<a href="#{card_id(image)}">{name}</a>'
    return f"<li>{name} <span class=quiet>{escape(note)}</span></li>"


def buckets_html(data: TrainingData) -> Iterator[str]:
    yield '<section id="buckets"><h2>Datasets and buckets</h2>\n'
    for index, dataset in enumerate(data.datasets):
        yield f"<h3>{dataset_title(index, dataset.config)}</h3>{_changed_html(dataset.config)}"
        yield _subset_table(dataset) + _bucket_table(dataset)
    yield "</section>\n"


def dataset_title(index: int, config: DatasetConfig) -> str:
    return f"Dataset {index + 1}: {size_text(config.resolution)}, batch size {config.batch_size}"


def subset_title(config: SubsetConfig) -> str:
    """As HTML."""
    source = config.metadata_file or config.image_dir or config.key_path
    kind = " (regularisation)" if config.is_reg else ""
    return f"<bdi>{escape(source)}</bdi>{kind}"


def _changed_html(config: DatasetConfig | SubsetConfig) -> str:
    """The settings that differ from their defaults, by their keys in the dataset file."""
    changed = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in _SHOWN_ELSEWHERE and value != field.default:
            text = field.name if value is True else f"{field.name} = {value}"
            changed.append(f"<code>{escape(text)}</code>")
    return f'<p class="settings">{" ".join(changed)}</p>' if changed else ""


def _subset_table(dataset: PlannedDataset) -> str:
    counts = [0] * len(dataset.config.subsets)
    for record in dataset.records:
        counts[record.subset_index] += 1
    rows = "".join(
        f"<tr><td>{subset_title(subset)}{_changed_html(subset)}</td><td>{count:,}</td><td>{subset.num_repeats}</td></tr>"
        for subset, count in zip(dataset.config.subsets, counts, strict=True)
    )
    return _table(("subset", "images", "repeats"), rows)


def _bucket_table(dataset: PlannedDataset) -> str:
    most = max((len(bucket.item_indices) for bucket in dataset.buckets), default=1)
    rows = "".join(
        f"<tr><td>{size_text(row.size)}</td><td>{row.num_images:,}</td>"
        f"<td>{_bar(row.num_items / most, f'{row.num_items:,}')}</td><td>{row.num_batches:,}</td>"
        f"<td>{_bar(row.fill, f'{row.fill:.0%}')}</td></tr>"
        for row in bucket_rows(dataset)
    )
    return _table(("bucket", "images", "items", "batches", "batches filled"), rows)


def _table(titles: Sequence[str], rows: str) -> str:
    head = "".join(f"<th>{title}</th>" for title in titles)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>\n'


def _bar(share: float, text: str) -> str:
    return f'<span class="bar"><i style="width:{share:.1%}"></i></span><span class="number">{text}</span>'


def tags_html(data: TrainingData) -> Iterator[str]:
    counts = tag_counts(data)
    once = sum(count == 1 for _, count in counts)
    yield f'<section id="tags"><h2>Tags</h2><p>{len(counts):,} distinct tags, {once:,} of them on one image only.'
    if len(counts) > _MOST_TAGS:
        yield f" The {_MOST_TAGS:,} most frequent are listed."
    yield '</p>\n<details open><summary>All tags</summary><div class="scroll tall"><table class="sortable">'
    yield "<thead><tr><th>tag</th><th>images</th></tr></thead><tbody>\n"
    most = counts[0][1] if counts else 1
    for tag, count in counts[:_MOST_TAGS]:
        once_mark = ' <span class="mark plain">once</span>' if count == 1 else ""
        yield f'<tr><td dir="auto">{escape(tag)}{once_mark}</td>'
        yield f'<td data-value="{count}">{_bar(count / most, f"{count:,}")}</td></tr>\n'
    yield "</tbody></table></div></details></section>\n"
