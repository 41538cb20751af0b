"""Image files: opening them, and reading their size from the header. Unreadable or corrupt ones are a `UserError`."""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from library.cli.damaged_files import DAMAGED_FILE_ERRORS
from library.cli.errors import UserError
from library.data.images.image_headers import HEAD_LENGTH, size_from_head
from library.data.records import ShardMember, Size, size_text
from library.data.storage import open_image_file

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".jxl")


@dataclass(frozen=True)
class _Kind:
    """An image format, recognised by its first 16 bytes, and the modules of which one reads it."""

    format: str  # its name in Pillow
    pattern: re.Pattern[bytes]
    modules: tuple[str, ...]
    hint: str = "reinstall Pillow: pip install --upgrade --force-reinstall pillow"


# recognised by content, not by extension; no format whose reader starts other programs
_KINDS = (
    _Kind("PNG", re.compile(rb"\x89PNG\r\n\x1a\n"), ("PIL.PngImagePlugin",)),
    _Kind("JPEG", re.compile(rb"\xff\xd8\xff"), ("PIL.JpegImagePlugin",)),
    _Kind("WEBP", re.compile(rb"RIFF.{4}WEBP", re.DOTALL), ("PIL.WebPImagePlugin",)),
    _Kind("BMP", re.compile(rb"BM"), ("PIL.BmpImagePlugin",)),
    _Kind("GIF", re.compile(rb"GIF8[79]a"), ("PIL.GifImagePlugin",)),
    _Kind(
        "AVIF",
        re.compile(rb".{4}ftyp(avif|avis|mif1|msf1)", re.DOTALL),
        ("PIL.AvifImagePlugin", "pillow_avif"),
        "install a Pillow that reads AVIF: pip install --upgrade 'pillow>=11.3'",
    ),
    _Kind(
        "JXL",
        re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "),
        ("pillow_jxl", "jxlpy.JXLImagePlugin"),
        "install the plug-in that reads JPEG XL: pip install pillow-jxl-plugin",
    ),
)

# readers warn of odd EXIF data and large images, which does not matter if they decode
_QUIET = ("ignore", None, Warning, re.compile("PIL|pillow_|jxlpy"), 0)

_UPRIGHT = 1
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)


class NoImages(UserError):
    """A folder or a metadata file without images; other subsets of the run may have some."""


class UnreadableImage(UserError):
    """An unreadable image: not found, corrupt or of an unknown format. `--skip_bad_images` skips it."""


@contextmanager
def opened_image(path: str, member: ShardMember | None = None) -> Iterator[ImageFile.ImageFile]:
    """The image, opened but not yet decoded. Errors of its reader in the block become `UnreadableImage`.

    `member`: of a shard, whose bytes are read; `path` then only names it. Raises `UserError` if the library that reads
    this format is not installed.
    """
    _silence_readers()
    try:
        with open_image_file(path, member) as file:
            kind = _kind_of(path, file.read(16))
            with Image.open(file, formats=(kind.format,)) as image:
                yield image
    except UnidentifiedImageError:
        raise _unreadable(path, "corrupt image") from None
    except Image.DecompressionBombError:
        raise _unreadable(path, f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels") from None
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from None
    except DAMAGED_FILE_ERRORS as error:
        raise _unreadable(path, f"corrupt image ({error})") from None


def _silence_readers() -> None:
    # a permanent filter: the context managers of `warnings` are not safe when several threads decode
    if _QUIET not in warnings.filters:
        warnings.filterwarnings("ignore", module=_QUIET[3].pattern)


def _kind_of(path: str, head: bytes) -> _Kind:
    """The format of a file that starts with `head`. Imports its reader."""
    kind = next((kind for kind in _KINDS if kind.pattern.match(head)), None)
    if kind is None:
        raise _unreadable(path, "the file is empty" if not head else "not an image, or an unknown format")
    for module in kind.modules:
        if kind.format in Image.OPEN:
            return kind
        try:
            importlib.import_module(module)
        except ImportError:
            continue
    if kind.format not in Image.OPEN:
        raise UserError(f"image {path} cannot be read: no reader for {kind.format} is installed", hint=kind.hint)
    return kind


def _unreadable(path: str, reason: str) -> UnreadableImage:
    return UnreadableImage(f"image {path} cannot be read: {reason}", hint="repair it, or remove it from the folder")


_MOST_ASPECT_ERROR = 0.02  # of a mask's aspect ratio against its image's: rounding


def mask_size_problem(path: str, size: Size, image_size: Size) -> UserError | None:
    """What is wrong with the size of a mask, whose resolution may differ from its image's; None if it fits."""
    if abs(size[0] * image_size[1] / (size[1] * image_size[0]) - 1) <= _MOST_ASPECT_ERROR:
        return None
    return UserError(
        f"mask {path} is {size_text(size)}, but its image is {size_text(image_size)}",
        hint="make a mask with the image's aspect ratio",
    )


def exif_transpose(image: Image.Image) -> Image.Transpose | None:
    """The rotation or flip that EXIF orientation asks for; None if the image is upright."""
    if image.format == "JXL" and not getattr(image, "jpeg", False):
        return None  # ISO 18181-2: it is upright when decoded, its EXIF orientation is for information
    # the method of the base class: that of PNG images would decode the whole file to find EXIF data after the pixels
    orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, _UPRIGHT)
    return _TRANSPOSE.get(orientation)


def read_size(path: str, member: ShardMember | None = None) -> Size:
    """(width, height) after EXIF orientation, from the file's header alone.

    `member`: as for `opened_image`. Raises `UserError` naming the file if it is not found, empty or not an image.
    """
    if member is not None:
        return _size_by_opening(path, member)
    try:
        with open(path, "rb", buffering=0) as file:
            size = size_from_head(file.read(HEAD_LENGTH))
    except (OSError, ValueError) as error:
        raise _unreadable(path, getattr(error, "strerror", None) or str(error)) from None
    if size is not None and min(size) > 0 and size[0] * size[1] <= (Image.MAX_IMAGE_PIXELS or 0):
        return size
    return _size_by_opening(path)


def _size_by_opening(path: str, member: ShardMember | None = None) -> Size:
    with opened_image(path, member) as image:
        width, height = image.size
        if width < 1 or height < 1:
            raise ValueError(f"size {width}x{height}")
        return (height, width) if exif_transpose(image) in _SIDEWAYS else (width, height)
