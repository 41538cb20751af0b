"""Caption files beside images: which of them are to be written, and writing them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence

from library.cli.atomic_files import atomic_path
from library.cli.errors import UserError, listed
from library.cli.jobs.outcome import Outcome
from library.cli.jobs.processes import own_share
from library.cli.launcher import is_first_process
from library.data.images.image_files import IMAGE_ENDINGS

logger = logging.getLogger(__name__)

_MAX_NAMES_IN_WARNING = 5


def caption_path(image: str, extension: str) -> str:
    """The caption file of an image: the same path with another extension."""
    return os.path.splitext(image)[0] + extension


def extension_problems(extension: str) -> Iterator[UserError]:
    """An extension with which captions would replace images."""
    if extension.lower() in IMAGE_ENDINGS:
        yield UserError(
            f"--caption_extension {extension} is that of images, which the captions would replace",
            hint="give the ending of text files, such as .txt or .caption",
        )


def images_to_caption(images: Sequence[str], extension: str, outcome: Outcome, *, keeps_existing: bool) -> list[str]:
    """This process's share of the images without those that have a caption file, which are counted as skipped.

    Of images that share a caption file (a.png and a.jpg), the first is captioned; a warning names the others.
    """
    owners: dict[str, str] = {}
    doubles = [image for image in images if owners.setdefault(caption_path(image, extension), image) != image]
    if doubles and is_first_process():
        logger.warning(
            "%d images have no caption file of their own, since another image has the same name before its ending: %s",
            len(doubles), listed(doubles, _MAX_NAMES_IN_WARNING),
        )  # fmt: skip
        outcome.skipped["they share the caption file of another image"] += len(doubles)
    share = list(own_share(list(owners.values())))
    if not keeps_existing:
        return share
    missing = [image for image in share if not os.path.exists(caption_path(image, extension))]
    outcome.skipped[f"they have a {extension} file, which --overwrite replaces"] += len(share) - len(missing)
    return missing


def write_caption(path: str, text: str) -> None:
    """Writes a caption file, one line, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(f"{text}\n", encoding="utf-8", newline="\n")
