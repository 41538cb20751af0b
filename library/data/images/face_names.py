"""Faces given in file names: `<stem>_<centre x>_<centre y>_<width>_<height>`, in pixels of the image."""

from __future__ import annotations

import re
from dataclasses import dataclass

from library.data.records import Size

_FACE_NAME = re.compile(r"(.+)_([0-9]{1,6})_([0-9]{1,6})_([0-9]{1,6})_([0-9]{1,6})", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Face:
    """A face in an image, in pixels after EXIF orientation."""

    centre: tuple[int, int]
    size: Size

    def is_in(self, image_size: Size) -> bool:
        """Whether its centre is inside an image of this size; otherwise the numbers mean something else."""
        return self.centre[0] < image_size[0] and self.centre[1] < image_size[1]


def split_face_name(stem: str) -> tuple[str, Face] | None:
    """(stem without the face, face) of a file name without extension; None if it gives no face."""
    match = _FACE_NAME.fullmatch(stem)
    if match is None:
        return None
    x, y, width, height = map(int, match.groups()[1:])
    if width == 0 or height == 0:
        return None
    return match[1], Face((x, y), (width, height))
