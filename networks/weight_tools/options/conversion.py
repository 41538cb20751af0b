"""Options of convert_lora.py. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from library.cli.errors import UserError
from library.cli.options import option
from networks.weight_tools.options.files import (
    FromFileToFile,
    precision_option,
    save_to_option,
    source_problems,
    target_problems,
)

FORMS = ("webui", "diffusers")


@dataclass(frozen=True)
class ConvertOptions(FromFileToFile):
    """Which LoRA file is converted, and to which form."""

    GROUP: ClassVar[str] = "Conversion"

    model: str | None = option(help="LoRA or DoRA file to convert", required=True, metavar="FILE")
    save_to: str | None = save_to_option()
    form: str | None = option(
        help="names of the tensors: webui are those that train_network.py writes and web UIs read, diffusers those of"
        " Diffusers and PEFT (default: the form that the file does not have)",
        choices=FORMS,
    )
    save_precision: str | None = precision_option("that of the file")

    def check(self) -> Iterator[UserError]:
        if self.model is not None:
            yield from source_problems("--model", self.model)
        yield from target_problems(self.save_to)
