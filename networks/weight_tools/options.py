"""Options of the tools on LoRA weight files. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from library.cli.errors import UserError
from library.cli.options import option
from library.models.weights.path_checks import SINGLE_FILE_ENDINGS, weight_file_problem

_DOWNLOAD_AGAIN = "copy or download it again"


@dataclass(frozen=True)
class CheckOptions:
    """Which LoRA file is checked."""

    GROUP: ClassVar[str] = "Check"

    file: str | None = option(help="LoRA file to check", positional=True, required=True, metavar="FILE")
    show_all_keys: bool = option(False, help="a line for each key of the file, not for each layer", aliases=("s",))

    @property
    def source(self) -> str:
        assert self.file is not None  # it is required
        return self.file

    def check(self) -> Iterator[UserError]:
        if self.file is not None:
            yield from source_problems("FILE", self.file)


def source_problems(flag: str, path: str) -> Iterator[UserError]:
    """What is wrong with a LoRA file to read, by its name, header and size; `flag`: what the user gave it with."""
    if os.path.isdir(path):
        yield UserError(f"{flag} {path} is a folder", "give the path of a LoRA file")
    elif not os.path.isfile(path):
        yield UserError(f"{flag} {path}: there is no such file", "check the path")
    elif not path.lower().endswith(SINGLE_FILE_ENDINGS):
        yield UserError(f"{flag} {path}: unknown kind of file", f"known endings: {', '.join(SINGLE_FILE_ENDINGS)}")
    else:
        problem = weight_file_problem(Path(path))
        if problem is not None:
            yield UserError(f"{flag} {path} {problem}", _DOWNLOAD_AGAIN)
