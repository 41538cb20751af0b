"""Picture files: opening them, and their size from the header. Whatever is wrong with one becomes a `UserError`."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import ExifTags, Image, UnidentifiedImageError

from library.cli.errors import UserError
from library.data.records import Size

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")

# decided by content, not by ending; no format whose reader starts other programs
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF")

# what Pillow's readers raise for damaged files, beside OSError
_DAMAGE_ERRORS = (
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    EOFError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
)

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


@contextmanager
def opened_picture(path: str) -> Iterator[Image.Image]:
    """The picture, opened and not yet decoded. What its reader raises in the block becomes a `UserError` too."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # large pictures and odd EXIF data are fine as long as they decode
            with Image.open(path, formats=_FORMATS) as image:
                yield image
    except UnidentifiedImageError:
        raise _unreadable(path, "it is not a picture of a known kind") from None
    except Image.DecompressionBombError:
        raise _unreadable(path, f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels") from None
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from None
    except _DAMAGE_ERRORS as error:
        raise _unreadable(path, f"it is damaged ({error})") from None


def _unreadable(path: str, reason: str) -> UserError:
    return UserError(f"picture {path} cannot be read: {reason}", hint="repair it, or remove it from the folder")


def exif_transpose(image: Image.Image) -> Image.Transpose | None:
    """How the picture must be turned or mirrored to stand upright, as its EXIF data say; None if it stands already."""
    # the method of the base class: that of PNG pictures would decode all of the file to look behind the pixels
    orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    return _TRANSPOSE.get(orientation)


def read_size(path: str) -> Size:
    """(width, height) after EXIF orientation, from the file's header alone.

    Raises `UserError` naming the file if it is missing, empty or no picture.
    """
    with opened_picture(path) as image:
        width, height = image.size
        if width < 1 or height < 1:
            raise ValueError(f"size {width}x{height}")
        return (height, width) if exif_transpose(image) in _SIDEWAYS else (width, height)
