"""Options of the dataset preview, which shows the data instead of training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from library.cli.options import option


@dataclass(frozen=True)
class ReportOptions:
    """Showing the data instead of training."""

    GROUP: ClassVar[str] = "Dataset preview"

    debug_dataset: bool = option(
        False,
        help="preview the dataset instead of training: write an HTML page with every image, caption and bucket as "
        "trained; needs no model",
        waives=("pretrained_model_name_or_path", "output_dir"),
    )
    debug_dataset_dir: str | None = option(
        help="folder for the page of --debug_dataset (default: the folder dataset in --output_dir)", metavar="FOLDER"
    )
    debug_dataset_before: str | None = option(
        help="metadata file from before cleaning: the page of --debug_dataset shows for each image of --in_json which "
        "tags and words went, struck through, and which came",
        metavar="FILE",
    )
    debug_dataset_window: bool = option(
        False,
        help="preview the dataset instead of training: show the images in a window; any key: next image, S: next "
        "batch, E: next epoch, Esc: quit",
        waives=("pretrained_model_name_or_path", "output_dir"),
    )

    @property
    def replaces_training(self) -> bool:
        """Whether the dataset is shown instead of trained on."""
        return self.debug_dataset or self.debug_dataset_window

    def check(self) -> Iterator[str]:
        for name in ("debug_dataset_dir", "debug_dataset_before"):
            if getattr(self, name) is not None and not self.debug_dataset:
                yield f"--{name} does nothing without --debug_dataset"
