"""Options that stand-alone scripts share."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

from library.cli.options import option

_DEVICE = re.compile(r"cpu|mps|cuda(:\d+)?")


def parse_device(value: Any) -> str:
    """A device's name. Raises `ValueError` with what was expected."""
    if not isinstance(value, str) or not _DEVICE.fullmatch(value):
        raise ValueError("cpu, cuda, a GPU such as cuda:1, or mps")
    return value


@dataclass(frozen=True)
class FolderOptions:
    """Which images a script works on."""

    GROUP: ClassVar[str] = "Images"

    train_data_dir: str | None = option(help="folder of images", positional=True, required=True, metavar="FOLDER")
    recursive: bool = option(False, help="images in subfolders too")

    @property
    def folder(self) -> str:
        assert self.train_data_dir is not None  # it is required
        return self.train_data_dir
