"""Thumbnails: images as they are trained, as HTML."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from html import escape

import numpy as np
from PIL import Image

from library.cli.errors import UserError
from library.data.images.decoding import load_image
from library.data.records import Item, TrainedImage
from library.dataset_report.duplicates import grey_thumbnail

# (up to this many images, longest side in pixels): a page stays under about 200 MB, even of noise
_LONGEST_SIDES = ((500, 512), (2_000, 320), (8_000, 160))
_SMALLEST_SIDE = 80
_JPEG_QUALITY = 85
_CHUNK = 64  # images in flight at once
_MOST_THREADS = 4


@dataclass(frozen=True)
class Thumbnail:
    """One image to show: a use of it, and whether it is flipped at random too."""

    item: Item
    flips: bool


@dataclass(frozen=True)
class Rendered:
    """The HTML of an image. Without `grey` the image is unreadable, and `html` has the error."""

    html: str
    grey: np.ndarray | None  # tiny thumbnail for finding duplicates, uint8 (16, 17)


def longest_side(num_images: int) -> int:
    """The longest side of thumbnails on a page of this many images."""
    return next((side for count, side in _LONGEST_SIDES if num_images <= count), _SMALLEST_SIDE)


def render_all(thumbnails: Sequence[Thumbnail], side: int) -> Iterator[Rendered]:
    """Decodes, resizes and crops images as training does, in order, several at a time."""
    num_threads = min(_MOST_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(num_threads) as pool:
        for start in range(0, len(thumbnails), _CHUNK):
            yield from pool.map(lambda thumbnail: _render(thumbnail, side), thumbnails[start : start + _CHUNK])


def _render(thumbnail: Thumbnail, side: int) -> Rendered:
    key = thumbnail.item.latent_key
    try:
        plain = load_image(replace(key, flipped=False), thumbnail.item.colour)
        parts = [_figure(plain, "as trained", side)]
        grey = grey_thumbnail(_to_image(plain))
        if plain.mask is not None and plain.mask.min() < 1:
            parts.append(_mask_figure(plain.mask, key.placement.bucket))
        if thumbnail.flips:
            flipped = load_image(replace(key, flipped=True), thumbnail.item.colour)
            parts.append(_figure(flipped, "flipped", side))
    except UserError as error:
        return Rendered(f'<p class="unreadable">{escape(error.message)}</p>', None)
    return Rendered("".join(parts), grey)


def _to_image(image: TrainedImage) -> Image.Image:
    pixels = np.rint((image.pixels.transpose(1, 2, 0) + 1) * 127.5)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _figure(image: TrainedImage, caption: str, side: int) -> str:
    shown = _to_image(image)
    size = shown.size
    shown.thumbnail((side, side), Image.Resampling.LANCZOS)
    return _tag(shown, size, caption, "JPEG", quality=_JPEG_QUALITY, subsampling=0)


def _mask_figure(mask: np.ndarray, size: tuple[int, int]) -> str:
    image = Image.fromarray(np.rint(mask * 255).clip(0, 255).astype(np.uint8))
    return _tag(image, size, "loss mask", "PNG")


def _tag(image: Image.Image, size: tuple[int, int], caption: str, kind: str, **options: int) -> str:
    file = io.BytesIO()
    image.save(file, kind, **options)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return (
        f'<figure><img src="data:image/{kind.lower()};base64,{data}" width="{size[0]}" height="{size[1]}" '
        f'alt="{caption}" loading="lazy" decoding="async"><figcaption>{caption}</figcaption></figure>'
    )
