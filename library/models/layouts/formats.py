"""The file formats of saved models. A new one is a row of `FORMATS`.

Imports no torch: options take their choices from the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.cli.atomic_files import atomic_folder, atomic_path
from library.cli.errors import UserError
from library.models.weights.path_checks import PICKLE_ENDINGS, SAFETENSORS_ENDING, find_weights

if TYPE_CHECKING:
    import torch

    from library.models.layouts.model_layout import ModelLayout
    from library.models.layouts.parts import ModelParts
    from library.models.text.tokenizer import PromptTokenizer


@dataclass(frozen=True)
class SavedModel:
    """A model and how to save it; `tokenizers` by the names of their folders."""

    parts: ModelParts
    layout: ModelLayout
    tokenizers: Mapping[str, PromptTokenizer]
    scheduler: Mapping[str, Any]  # entries of a Diffusers scheduler's configuration, `prediction_type` among them
    dtype: torch.dtype
    metadata: Mapping[str, str] = field(default_factory=dict)
    epoch: int = 0
    global_step: int = 0


@dataclass(frozen=True)
class ModelFormat:
    """`ending` of its files, empty for folders; `implementation` as `modelspec.implementation` has it."""

    ending: str
    implementation: str
    write: Callable[[Path, SavedModel], None]


def _write_ckpt(path: Path, model: SavedModel) -> None:
    from library.models.layouts.config_metadata import config_entry, warn_of_unusual_parts
    from library.models.layouts.ldm_writing import single_file_tensors
    from library.models.weights.weight_writing import write_pickle

    tensors = single_file_tensors(model.parts, model.layout, model.scheduler, model.dtype)
    contents = {"state_dict": tensors, "epoch": model.epoch, "global_step": model.global_step}
    warn_of_unusual_parts(model.parts, model.layout, tensors)
    write_pickle(path, {**contents, "metadata": config_entry(model.parts, model.layout, model.scheduler)})


def _write_safetensors(path: Path, model: SavedModel) -> None:
    from library.models.layouts.config_metadata import config_entry, warn_of_unusual_parts
    from library.models.layouts.ldm_writing import single_file_tensors
    from library.models.weights.weight_writing import write_safetensors

    tensors = single_file_tensors(model.parts, model.layout, model.scheduler, model.dtype)
    warn_of_unusual_parts(model.parts, model.layout, tensors)
    configs = config_entry(model.parts, model.layout, model.scheduler)
    write_safetensors(path, tensors, {**model.metadata, **configs})


def _write_diffusers(folder: Path, model: SavedModel) -> None:
    _write_folder(folder, model, metadata=None)


def _write_diffusers_safetensors(folder: Path, model: SavedModel) -> None:
    _write_folder(folder, model, metadata=model.metadata)


def _write_folder(folder: Path, model: SavedModel, metadata: Mapping[str, str] | None) -> None:
    from library.models.layouts.diffusers_writing import write_folder

    write_folder(folder, model, metadata)


_STABILITY = "https://github.com/Stability-AI/generative-models"
FORMATS: dict[str, ModelFormat] = {
    "ckpt": ModelFormat(".ckpt", _STABILITY, _write_ckpt),
    "safetensors": ModelFormat(SAFETENSORS_ENDING, _STABILITY, _write_safetensors),
    "diffusers": ModelFormat("", "diffusers", _write_diffusers),
    "diffusers_safetensors": ModelFormat("", "diffusers", _write_diffusers_safetensors),
}
FOLDER_FORMAT = "diffusers_safetensors"
_WITH_SAFETENSORS = {"ckpt": "safetensors", "diffusers": "diffusers_safetensors"}


def choose_format(save_model_as: str | None, *, use_safetensors: bool, source: str) -> str:
    """The format to save in: the given one, else that of the model at `source`; diffusers for a name on the Hub.

    `use_safetensors` (the flag --use_safetensors) turns a format of pickles into its safetensors twin.
    """
    if save_model_as is None:
        ending = Path(source).suffix.lower()
        is_file = ending == SAFETENSORS_ENDING or ending in PICKLE_ENDINGS
        if is_file:
            save_model_as = "safetensors" if ending == SAFETENSORS_ENDING else "ckpt"
        else:
            weights = find_weights(Path(source) / "unet", "unet")
            is_safe = weights is not None and SAFETENSORS_ENDING in weights.name
            save_model_as = "diffusers_safetensors" if is_safe else "diffusers"
    return _WITH_SAFETENSORS.get(save_model_as, save_model_as) if use_safetensors else save_model_as


def format_by_name(path: Path) -> str:
    """The format that a path's ending stands for; for a folder, safetensors."""
    by_ending = {row.ending: name for name, row in FORMATS.items() if row.ending}
    return by_ending.get(path.suffix.lower(), FOLDER_FORMAT)


def format_problem(format: str, parts: ModelParts) -> UserError | None:
    """Why a model cannot be saved in a format: single files have no name for one of its layers."""
    from library.models.layouts.ldm_writing import unnamed_layer_problem

    return unnamed_layer_problem(parts) if FORMATS[format].ending else None


def save_model(path: Path, format: str, model: SavedModel) -> None:
    """Writes a model in one of `FORMATS`, atomically; a file or folder at `path` is replaced by the complete new one.

    Raises `OSError` when it cannot be written, and for a folder at `path` that is not a model.
    """
    row = FORMATS[format]
    problem = target_problem(path, format)
    if problem is not None:
        raise FileExistsError(problem.message)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) if row.ending else atomic_folder(path) as temporary:
        row.write(temporary, _with_implementation(model, row.implementation))


def target_problem(path: Path, format: str) -> UserError | None:
    """Why a model must not be written to `path`: there is something else than a model of that kind."""
    if FORMATS[format].ending:
        return UserError(f"{path} is a folder", "give the path of a file") if path.is_dir() else None
    if path.is_dir():
        if any(path.iterdir()) and not (path / "model_index.json").is_file():
            return UserError(f"{path} is not empty and not a model", "give the path of a new folder")
    elif path.exists():
        return UserError(f"{path} is a file", "give the path of a folder")
    return None


def _with_implementation(model: SavedModel, implementation: str) -> SavedModel:
    if "modelspec.sai_model_spec" not in model.metadata:
        return model
    return replace(model, metadata={**model.metadata, "modelspec.implementation": implementation})
