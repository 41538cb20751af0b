"""One image of the page: its thumbnail, resizing and crop, captions and warnings."""

from __future__ import annotations

import ntpath
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from library.data.records import ImageRecord, Placement, size_text
from library.dataset_report.caption_length import CaptionLength
from library.dataset_report.report_warnings import KINDS, cropped_fraction
from library.dataset_report.sampled_items import ImageId

_MOST_CAPTIONS = 4


@dataclass(frozen=True)
class Card:
    """Everything the page shows of one image."""

    image: ImageId
    record: ImageRecord
    placement: Placement
    class_tokens: str | None
    num_uses: int  # per epoch
    captions: Sequence[str]  # distinct ones, as drawn
    marks: Mapping[str, str]  # kinds of warnings, each with a note


def card_id(image: ImageId) -> str:
    """The anchor of an image on the page."""
    return f"p{image.dataset}-{image.record}"


def short_name(record: ImageRecord) -> str:
    """The file's name without its folder."""
    return posixpath.basename(record.key) or ntpath.basename(record.path)


def card_html(card: Card, thumbnail: str, lengths: Mapping[str, CaptionLength], limit: int) -> str:
    """`thumbnail`: the images as HTML. `lengths`: of each caption; `limit`: tokens that the text encoder reads."""
    record = card.record
    captions = "".join(_caption_html(text, lengths[text], limit) for text in card.captions[:_MOST_CAPTIONS])
    more = len(card.captions) - _MOST_CAPTIONS
    return (
        f'<article class="card" id="{card_id(card.image)}" data-kinds="{" ".join(card.marks)}">'
        f'<div class="thumbnail">{thumbnail}</div><div class="facts">'
        f'<h4 title="{escape(record.path)}"><bdi>{escape(short_name(record))}</bdi></h4>'
        f"{_marks_html(card)}{_transform_html(record, card.placement)}"
        f'<ul class="captions">{captions}</ul>'
        f"{f'<p class=quiet>and {more} more</p>' if more > 0 else ''}</div></article>\n"
    )


def _marks_html(card: Card) -> str:
    record = card.record
    marks = ['<span class="mark reg">regularisation</span>'] if record.is_reg else []
    if card.class_tokens:
        marks.append(f'<span class="mark plain">class: {escape(card.class_tokens)}</span>')
    if card.num_uses > 1:
        marks.append(f'<span class="mark plain">{card.num_uses} uses per epoch</span>')
    for kind, note in card.marks.items():
        marks.append(f'<span class="mark warn">{escape(note or KINDS[kind].mark)}</span>')
    return f'<p class="marks">{"".join(marks)}</p>'


def _transform_html(record: ImageRecord, placement: Placement) -> str:
    """Resizing and cropping, from the image's size to its bucket."""
    if record.prepared is not None:
        text = f"legacy .npz latents of {size_text(record.prepared.bucket)}"
        return f'<p class="way">{text} from <bdi>{escape(record.prepared.path)}</bdi></p>'
    steps = [size_text(record.size)]
    if placement.resized != record.size:
        steps.append(f"resized {size_text(placement.resized)}")
    if placement.bucket != placement.resized:
        steps.append(f"cropped {size_text(placement.bucket)}")
    lost = cropped_fraction(placement)
    text = " → ".join(steps) + (f" · {lost:.1%} cropped away" if lost > 0 else "")
    return f'<p class="way">{_crop_sketch(placement) if lost > 0 else ""}<span>{text}</span></p>'


def _crop_sketch(placement: Placement) -> str:
    """A small drawing of the crop in the whole image."""
    (width, height), (bucket_width, bucket_height) = placement.resized, placement.bucket
    left, top = placement.crop
    window = (
        f"left:{left / width:.1%};top:{top / height:.1%};"
        f"width:{bucket_width / width:.1%};height:{bucket_height / height:.1%}"
    )
    return f'<span class="sketch" style="aspect-ratio:{width}/{height}"><i style="{window}"></i></span>'


def _caption_html(caption: str, length: CaptionLength, limit: int) -> str:
    kept, lost = escape(caption[: length.kept]), escape(caption[length.kept :])
    text = kept + (f'<s title="truncated">{lost}</s>' if lost else "")
    over = " over" if length.num_tokens > limit else ""
    return (
        f'<li><span class="tokens{over}" title="tokens of {limit}">{length.num_tokens}</span>'
        f'<span class="text" dir="auto">{text or "<em>no caption</em>"}</span></li>'
    )
