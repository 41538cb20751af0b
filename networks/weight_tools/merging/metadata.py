"""Metadata of a LoRA that is made from several files."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from library.models.weights.modelspec import kept_entries
from networks.weight_tools.lora_file import LoRAFile

logger = logging.getLogger(__name__)

_BASE = ("ss_base_model_version", "ss_v2")  # what programs need to know which models it is for
_SPECIFIED = "modelspec.sai_model_spec"


def merged_metadata(
    files: Sequence[tuple[LoRAFile, float]], target: Path, *, no_metadata: bool = False
) -> dict[str, str]:
    """The entries that are equal in all files, and where they came from; with `no_metadata` the base model alone.

    Warns where the files are of different base models.
    """
    base = _base_entries([file for file, _ in files])
    if no_metadata:
        return base
    first, *others = [kept_entries(file.metadata) for file, _ in files]
    common = {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}
    sources = [f"{file.path.stem} x {ratio:g}" for file, ratio in files]
    entries = {**common, **base, "ss_training_comment": f"merged from {', '.join(sources)}"}
    if _SPECIFIED in common:
        entries |= {
            "modelspec.title": target.stem,
            "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "modelspec.merged_from": ", ".join(file.path.stem for file, _ in files),
        }
    return entries


def _base_entries(files: Sequence[LoRAFile]) -> dict[str, str]:
    """The base model, where all files that name one name the same."""
    entries = {}
    for key in _BASE:
        named = {file.metadata[key]: file.path for file in files if key in file.metadata}
        if len(named) == 1:
            entries[key] = next(iter(named))
        elif named:
            shown = ", ".join(f"{path.name} {value}" for value, path in named.items())
            logger.warning("these LoRAs were trained on different kinds of models (%s): %s", key, shown)
    return entries
