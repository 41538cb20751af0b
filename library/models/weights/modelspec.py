"""The `modelspec.*` entries of saved files: the Stability AI model specification (SAI ModelSpec) 1.0.0.

One function for adapters and whole models. `modelspec.hash_sha256` is added by what writes the file.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from library.models.options import MetadataOptions

_PREFIX = "modelspec."
# entries given by the option --metadata_<entry>
_GIVEN = (
    "title", "author", "description", "license", "tags", "usage_hint", "merged_from", "trigger_phrase", "preprocessor",
    "is_negative_embedding",
)  # fmt: skip
# entries that describe one file and are not copied
_OF_ONE_FILE = (
    "format", "diffusers_config", "config_not_in_weights", "modelspec.hash_sha256", "sshs_model_hash",
    "sshs_legacy_hash",
)  # fmt: skip

_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}  # flows have no name in the specification


@dataclass(frozen=True)
class SpecifiedModel:
    """What the specification requires of a model. `resolution` is (width, height)."""

    architecture: str  # "stable-diffusion-v1", with "/lora" appended for an adapter
    prediction_type: str  # of the noise process
    resolution: tuple[int, int]
    implementation: str = "diffusers"
    clip_skip: int | None = None
    timestep_range: tuple[int, int] | None = None  # first and last trained timestep, where not all were


def specification_entries(
    model: SpecifiedModel, texts: MetadataOptions, *, title: str, earlier: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The entries for a file that is saved now.

    `title`: the default for `--metadata_title`. `earlier`: the metadata of the source file, whose entries of the
    specification are kept where there are no new ones.
    """
    width, height = model.resolution
    entries: dict[str, str | None] = {
        "sai_model_spec": "1.0.0",
        "architecture": model.architecture,
        "implementation": model.implementation,
        "resolution": f"{width}x{height}",
        "prediction_type": _PREDICTIONS.get(model.prediction_type),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "encoder_layer": None if model.clip_skip is None else str(model.clip_skip),
        "timestep_range": None if model.timestep_range is None else ",".join(map(str, model.timestep_range)),
        **{name: getattr(texts, f"metadata_{name}") for name in _GIVEN},
        "thumbnail": texts.thumbnail,
    }
    kept = {key: value for key, value in kept_entries(earlier or {}).items() if key.startswith(_PREFIX)}
    new = {_PREFIX + name: value for name, value in entries.items() if value is not None}
    return {_PREFIX + "title": title, **kept, **new}


def kept_entries(metadata: Mapping[str, str]) -> dict[str, str]:
    """The entries of a file's metadata that still apply to a file converted from it."""
    return {key: value for key, value in metadata.items() if key not in _OF_ONE_FILE}
