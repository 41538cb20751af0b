"""The thumbnail of a saved file: `modelspec.thumbnail`, a JPEG of at most 256x256 in a data URL.

The Stability AI model specification 1.0.0 defines that form; data URLs are described in RFC 2397.
"""

from __future__ import annotations

import base64
import io
import os
import re

from library.cli.errors import UserError

FLAG = "--metadata_thumbnail"
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,(.+)", re.ASCII | re.DOTALL)
_LARGEST = (256, 256)
_QUALITY = 90
_HINT = "give the path of a JPEG, PNG or WebP image, or data:image/jpeg;base64,... with the image itself"
_SHOWN_LETTERS = 200  # in messages


def thumbnail_url(value: str) -> str:
    """`value` itself where it is the data URL of an image, else that of the image in the file of that name.

    A file's image is scaled down to fit into 256x256 and becomes a JPEG. Raises `UserError` for what is neither.
    """
    if value[:5].lower() == "data:":
        return _checked(value)
    if not os.path.isfile(value):  # unlike Path.is_file, False for names that are too long
        raise UserError(f"{FLAG} {_shortened(value)}: there is no such file", _HINT)
    return f"data:image/jpeg;base64,{base64.b64encode(_small_jpeg(value)).decode('ascii')}"


def _checked(url: str) -> str:
    found = _DATA_URL.fullmatch(url)
    if found is None:
        raise UserError(f"{FLAG} {_shortened(url)} is not the data URL of an image", _HINT)
    try:
        base64.b64decode(found[1], validate=True)
    except ValueError as error:
        raise UserError(f"{FLAG} {_shortened(url)} is damaged: {error}", _HINT) from None
    return url


def _shortened(value: str) -> str:
    return value if len(value) <= _SHOWN_LETTERS else f"{value[:_SHOWN_LETTERS]}..."


def _small_jpeg(path: str) -> bytes:
    # Pillow only now: most runs have no thumbnail, and --help needs none
    from PIL import Image

    from library.data.images.image_files import exif_transpose, opened_image

    try:
        with opened_image(path) as image:
            turn = exif_transpose(image)
            colours = image.convert("RGBA")
    except UserError as error:
        raise UserError(f"{FLAG}: {error.message}", _HINT) from error
    upright = colours if turn is None else colours.transpose(turn)
    upright.thumbnail(_LARGEST, Image.Resampling.LANCZOS)
    opaque = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")
    contents = io.BytesIO()
    opaque.save(contents, "JPEG", quality=_QUALITY)
    return contents.getvalue()
