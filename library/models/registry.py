"""The model at a path: detected from its small files, loaded, read as parts, or inspected.

Imports no torch before a model is loaded.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.cli.checks import Findings, report
from library.cli.errors import UserError, raise_together
from library.models.families import (
    FamilyEntry,
    ModelSource,
    encoder_problems,
    family_of,
    model_problems,
    other_kind,
    trained_titles,
)
from library.models.family import ImageEncoder, LoadSettings, ModelFamily
from library.models.options import ModelOptions, PromptOptions
from library.models.reading.detection import DetectedModel
from library.models.weights.model_files import ModelFolder, small_files
from library.models.weights.path_checks import FLAG

if TYPE_CHECKING:
    from library.models.reading.opened import OpenedModel
    from library.models.weights.inspection import Inspection


@dataclass(frozen=True)
class FoundModel:
    """A model, detected: its family and what its small files say."""

    family: FamilyEntry
    detected: DetectedModel

    def check_options(self, options: ModelOptions, prompt_options: PromptOptions) -> Findings:
        """Options that contradict the model, and models that cannot be trained."""
        return self.family.check_options(self.detected, options, prompt_options)


def detect_model(options: ModelOptions, *, asks_hub: bool = False) -> FoundModel | None:
    """The model at `options.pretrained_model_name_or_path` by its small files.

    `asks_hub`: those of a name on the Hub are downloaded where they are not in its cache, a few kilobytes.
    None where these do not show it before it is loaded, or where there is none. Raises `UserError` for damaged ones,
    and for a name on the Hub under which there is no model of a known family.
    """
    path = options.pretrained_model_name_or_path or ""
    if asks_hub:
        from library.models.weights.hub_download import hub_configurations

        folder = hub_configurations(path, FLAG)
        if folder is not None:
            return _known(ModelFolder(folder), path)
    source = small_files(Path(path))
    return None if source is None else _found(source)


def _known(source: ModelSource, path: str) -> FoundModel:
    found = _found(source)
    if found is None:
        raise UserError(f"{FLAG} {path}: {_what_else(source)}", f"known are {trained_titles()}")
    return found


def _found(source: ModelSource) -> FoundModel | None:
    family = family_of(source)
    return None if family is None else FoundModel(family, family.detect(source))


def load_family(
    options: ModelOptions,
    prompt_options: PromptOptions | None = None,
    settings: LoadSettings | None = None,
    known: FoundModel | None = None,
) -> ModelFamily:
    """Loads the model at `options.pretrained_model_name_or_path`; by default in float32, to the CPU.

    Reads local files only, unless the path is a name on the Hub. `known`: what `detect_model` has found there, where
    the options were checked against it.

    Raises `UserError` when there is no model, when it is damaged or of a kind that is not known, and when flags
    contradict it.
    """
    prompts = prompt_options or PromptOptions()
    found, source = _identified(options, prompts, known)
    module = importlib.import_module(f"{found.family.package}.model")
    return module.load(source, found.detected, options, prompts, settings or LoadSettings())


def read_model(options: ModelOptions) -> OpenedModel:
    """The model at `options.pretrained_model_name_or_path`, checked, with its weights left in their files.

    Raises `UserError` as `load_family` does.
    """
    import torch

    from library.models.reading.loading import load_model
    from library.models.reading.opened import OpenedModel

    found, source = _identified(options, PromptOptions(), None)
    with torch.device("meta"):
        loaded = load_model(source, found.detected.layout, options)
    return OpenedModel(found.detected, loaded, found.detected.predicts(options))


def _identified(options: ModelOptions, prompts: PromptOptions, known: FoundModel | None) -> tuple[FoundModel, Any]:
    """The model at the path and its files, opened, once its options are checked."""
    if options.pretrained_model_name_or_path is None:
        raise UserError(f"{FLAG} is missing", "give the path of the model to train on")
    raise_together(model_problems(options))
    from library.models.weights.hub_download import local_path

    path = local_path(options.pretrained_model_name_or_path, FLAG)
    source = _opened(path, is_mapped=not options.disable_mmap_load_safetensors)
    found = known or _known(source, str(path))
    if known is None:
        report(found.check_options(options, prompts))
    return found, source


def load_encoder(path: str, flag: str, settings: LoadSettings) -> ImageEncoder:
    """Loads only what encodes images of the model at `path`, which the user gave with `flag`; a VAE alone does too.

    Reads local files only, unless the path is a name on the Hub. Raises `UserError` where there is none, and for
    models of a kind that is not known.
    """
    raise_together(encoder_problems(path, flag))
    from library.models.latent_diffusion import (
        vae_codec,  # small files do not show the family of a VAE alone: all have one kind
    )

    return vae_codec.load_encoder(path, settings, flag)


def _opened(path: Path, *, is_mapped: bool) -> Any:
    """A folder, or a file under its usual keys, whose weights can be read."""
    from library.models.layouts import ldm_layout
    from library.models.layouts.diffusers_folder import DiffusersFolder
    from library.models.weights.checkpoint_files import open_weights

    return (
        DiffusersFolder(path, is_mapped)
        if path.is_dir()
        else ldm_layout.unwrapped(open_weights(path, is_mapped=is_mapped))
    )


def inspect_model(path: str) -> Inspection:
    """What a file of weights or a Diffusers folder contains, read from headers and shapes.

    Raises `UserError` for what cannot be read, and for folders of no known family.
    """
    from library.models.layouts import ldm_layout
    from library.models.layouts.diffusers_folder import DiffusersFolder
    from library.models.weights.checkpoint_files import open_shapes
    from library.models.weights.hub_download import local_path
    from library.models.weights.inspection import Inspection, count_tensors

    local = local_path(path, "SOURCE")
    if not local.exists():
        raise UserError(f"{path}: there is no such file or folder", "check the path")
    source = DiffusersFolder(local) if local.is_dir() else ldm_layout.unwrapped(open_shapes(local))
    family = family_of(source)
    if family is not None:
        return importlib.import_module(f"{family.package}.inspection").inspect(source)
    if isinstance(source, DiffusersFolder):
        raise UserError(f"{path}: {_what_else(source)}", "give the folder of a model, or a file of weights")
    return Inspection(str(local), _what_else(source), (count_tensors("all", source.tensors),), source.metadata)


def _what_else(source: ModelSource) -> str:
    kind = other_kind(source)
    what = "folder holds" if isinstance(source, ModelFolder) else "file is"
    return "not a model of a known family" if kind is None else f"the {what} {kind.phrase}"
