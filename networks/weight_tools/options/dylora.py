"""Options of the tool that makes LoRAs of a DyLoRA. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from library.cli.errors import UserError
from library.cli.options import option
from networks.weight_tools.options.files import source_problems, target_problems


@dataclass(frozen=True)
class DyLoRAOptions:
    """Which DyLoRA is cut into LoRAs."""

    GROUP: ClassVar[str] = "Extraction"

    model: str | None = option(help="DyLoRA file", required=True, metavar="FILE")
    save_to: str | None = option(
        help="where to write: lora.safetensors becomes lora-0004.safetensors for rank 4, and so on",
        required=True,
        metavar="FILE",
    )
    unit: int | None = option(
        help="step from rank to rank: the unit of --network_args that it was trained with (default: that of its"
        " metadata)",
        minimum=1,
    )

    @property
    def source(self) -> str:
        assert self.model is not None  # it is required
        return self.model

    def target(self, rank: int) -> str:
        """The file for a rank."""
        assert self.save_to is not None  # it is required
        path = Path(self.save_to)
        return str(path.with_name(f"{path.stem}-{rank:04}{path.suffix}"))

    def check(self) -> Iterator[UserError]:
        if self.model is not None:
            yield from source_problems("--model", self.model)
        yield from target_problems(self.save_to)
