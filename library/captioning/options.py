"""Options that the captioning and tagging scripts share."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar

from library.cli.jobs.options import parse_device
from library.cli.options import option


@dataclass(frozen=True)
class InferenceOptions:
    """How a model gets its images."""

    GROUP: ClassVar[str] = "Inference"

    batch_size: int = option(1, help="images that the model gets at once", minimum=1)
    max_data_loader_n_workers: int | None = option(
        help="threads that decode images while the model computes (default: one per CPU core, at most 8)", minimum=0
    )
    device: str | None = option(
        help="cpu, cuda, a GPU such as cuda:1, or mps (default: a GPU where there is one)", parse=parse_device,
        metavar="DEVICE",
    )  # fmt: skip
    overwrite: bool = option(False, help="replace what earlier runs have written (otherwise it is kept)")
    debug: bool = option(False, help="show the result for each image")

    def num_threads(self) -> int:
        """The number of decoder threads."""
        if self.max_data_loader_n_workers is not None:
            return max(1, self.max_data_loader_n_workers)
        return min(8, os.cpu_count() or 1)
