"""What a model's small files say: the header of a file of weights, the configurations of a Diffusers folder.

Imports no torch, so that mistakes are found before anything slow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from library.cli.errors import UserError
from library.models.weights.model_kinds import usual_keys
from library.models.weights.path_checks import PICKLE_ENDINGS, SAFETENSORS_ENDING
from library.models.weights.pickle_names import read_pickle_names
from library.models.weights.safetensors_header import HeaderError, read_header


class HasShape(Protocol):
    """A tensor, or its entry in a header."""

    @property
    def shape(self) -> tuple[int, ...]: ...


class TensorFile(Protocol):
    """A single file of weights, opened or as its header alone."""

    @property
    def path(self) -> Path: ...

    @property
    def tensors(self) -> Mapping[str, HasShape]: ...

    @property
    def metadata(self) -> Mapping[str, str]: ...


@dataclass(frozen=True)
class ModelHeader:
    """The tensors of a single file, under their usual keys, and its metadata."""

    path: Path
    tensors: Mapping[str, HasShape]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class ModelFolder:
    """A Diffusers folder: `model_index.json`, `unet/`, `vae/`, `text_encoder/` and so on."""

    path: Path

    def has(self, name: str) -> bool:
        """Whether there is a file or folder of that name."""
        return (self.path / name).exists()

    def read_json(self, name: str) -> dict[str, Any]:
        """The contents of a JSON file; raises `UserError` for one that is missing or damaged."""
        path = self.path / name
        try:
            contents = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}", "the model folder is incomplete") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is not valid JSON: {error}", "copy or download it again") from error
        if not isinstance(contents, dict):
            raise UserError(f"{path} holds no JSON object", "copy or download it again")
        return contents


def small_files(path: Path) -> ModelFolder | ModelHeader | None:
    """The folder or header at `path`; None for what shows nothing before it is loaded, such as names on the Hub."""
    if path.is_dir():
        return ModelFolder(path)
    tensors: Mapping[str, HasShape]
    ending = path.suffix.lower()
    if ending == SAFETENSORS_ENDING:
        try:
            header = read_header(path)
        except (HeaderError, OSError):
            return None
        tensors, metadata = header.tensors, header.metadata
    else:
        named = read_pickle_names(path) if ending in PICKLE_ENDINGS else None
        if named is None:
            return None
        tensors, metadata = named
    return ModelHeader(path, {new: tensors[old] for new, old in usual_keys(tensors).items()}, metadata)
