"""Thumbnails: images as they are trained."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace

import numpy as np
from PIL import Image

from library.cli.errors import UserError
from library.data.images.decoding import load_image, load_masked_image
from library.data.images.inpaint_masks import MaskShares
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
    """One image to show: a use of it, and whether it is flipped at random too.

    `masks`: how masks are drawn for inpainting, where a part of images is to be drawn.
    """

    item: Item
    flips: bool
    masks: MaskShares | None = None


@dataclass(frozen=True)
class Figure:
    """What an <img> shows; `size` is that of training, `data` the base64 of a file of `kind`."""

    caption: str
    kind: str  # "jpeg" or "png"
    size: tuple[int, int]
    data: str


@dataclass(frozen=True)
class Rendered:
    """The figures of an image; for an unreadable one the error, and no `grey`."""

    figures: tuple[Figure, ...]
    grey: np.ndarray | None  # tiny thumbnail for finding duplicates, uint8 (16, 17)
    error: str = ""


def thumbnail_line(thumbnail: Rendered) -> bytes:
    """The figures and the error as a line for a temporary file."""
    return json.dumps([thumbnail.error, *map(astuple, thumbnail.figures)]).encode() + b"\n"


def read_thumbnail(line: bytes) -> Rendered:
    """What `thumbnail_line` made a line of."""
    error, *figures = json.loads(line)
    return Rendered(tuple(Figure(*figure) for figure in figures), None, error)


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
        figures = [_figure(plain, "as trained", side)]
        grey = grey_thumbnail(_to_image(plain))
        if thumbnail.masks is not None:
            masked = load_masked_image(thumbnail.item, thumbnail.masks)
            caption = "to be drawn: the grey part" + (", flipped" if key.flipped else "")
            figures.append(_figure(masked, caption, side))
        elif plain.mask is not None and plain.mask.min() < 1:
            figures.append(_mask_figure(plain.mask, key.placement.bucket))
        if thumbnail.flips:
            flipped = load_image(replace(key, flipped=True), thumbnail.item.colour)
            figures.append(_figure(flipped, "flipped", side))
    except UserError as error:
        return Rendered((), None, error.message)
    return Rendered(tuple(figures), grey)


def _to_image(image: TrainedImage) -> Image.Image:
    pixels = np.rint((image.pixels.transpose(1, 2, 0) + 1) * 127.5)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _figure(image: TrainedImage, caption: str, side: int) -> Figure:
    shown = _to_image(image)
    size = shown.size
    shown.thumbnail((side, side), Image.Resampling.LANCZOS)
    return _encoded(shown, size, caption, "jpeg", quality=_JPEG_QUALITY, subsampling=0)


def _mask_figure(mask: np.ndarray, size: tuple[int, int]) -> Figure:
    image = Image.fromarray(np.rint(mask * 255).clip(0, 255).astype(np.uint8))
    return _encoded(image, size, "loss mask", "png")


def _encoded(image: Image.Image, size: tuple[int, int], caption: str, kind: str, **options: int) -> Figure:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Figure(caption, kind, size, base64.b64encode(file.getvalue()).decode("ascii"))
