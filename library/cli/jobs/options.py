"""Options that stand-alone scripts share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from library.cli.options import option


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
