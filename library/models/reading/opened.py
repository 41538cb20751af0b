"""A model whose weights are left in its files, to be looked at layer by layer and written again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from library.models.layouts.formats import SavedModel, save_model
from library.models.options import MetadataOptions
from library.models.reading.detection import DetectedModel
from library.models.reading.loading import LoadedModel
from library.models.weights.modelspec import SpecifiedModel, kept_entries, specification_entries

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class OpenedModel:
    """What is known of a model, and its parts on the device "meta": they cannot compute.

    The tensors of their state_dict are read one by one when they are used, by `save` too.
    """

    detected: DetectedModel
    loaded: LoadedModel
    prediction_type: str

    @property
    def unet(self) -> nn.Module:
        return self.loaded.parts.unet

    @property
    def vae(self) -> nn.Module:
        return self.loaded.parts.vae

    @property
    def text_encoders(self) -> tuple[nn.Module, ...]:
        return tuple(self.loaded.parts.text_encoders.values())

    @property
    def version(self) -> str:
        """As `ss_base_model_version` has it."""
        return self.detected.layout.versions[self.prediction_type]

    @property
    def architecture(self) -> str:
        """As SAI ModelSpec has it."""
        return self.detected.layout.architectures[self.prediction_type]

    def metadata(self, texts: MetadataOptions, earlier: Mapping[str, str], title: str) -> dict[str, str]:
        """The metadata of what is made from the model; `earlier`: that of its file."""
        found = re.fullmatch(r"(\d+)x(\d+)", earlier.get("modelspec.resolution", ""))
        usual = self.detected.layout.usual_sizes[self.prediction_type]
        size = (int(found[1]), int(found[2])) if found else (usual, usual)
        made = SpecifiedModel(self.architecture, self.prediction_type, size)
        return {**kept_entries(earlier), **specification_entries(made, texts, title=title, earlier=earlier)}

    def save(self, path: Path, *, format: str, dtype: torch.dtype, metadata: Mapping[str, str]) -> None:
        """Writes the model in a format of `layouts.formats.FORMATS`. Raises `OSError` when it cannot be written."""
        scheduler = {**self.detected.scheduler, "prediction_type": self.prediction_type}
        model = SavedModel(
            self.loaded.parts, self.detected.layout, self.loaded.tokenizers, scheduler, dtype, dict(metadata)
        )
        save_model(path, format, model)
