"""The known model families, and loading of the model at a path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from library.cli.errors import UserError, raise_together
from library.models.family import ModelFamily
from library.models.layouts import ldm_layout
from library.models.layouts.diffusers_folder import DiffusersFolder
from library.models.options import ModelOptions, PromptOptions
from library.models.stable_diffusion import inspection as stable_diffusion_inspection
from library.models.stable_diffusion import model as stable_diffusion
from library.models.weights.checkpoint_files import WeightFile, open_shapes, open_weights
from library.models.weights.hub_download import local_path
from library.models.weights.inspection import Inspection, count_tensors
from library.models.weights.model_kinds import kind_of_folder, kind_of_keys
from library.models.weights.path_checks import FLAG, model_problems

ModelSource = DiffusersFolder | WeightFile


@dataclass(frozen=True)
class FamilyEntry:
    """One family: how to detect, load and inspect its models."""

    title: str
    detect: Callable[[ModelSource], bool]
    load: Callable[[ModelSource, ModelOptions, PromptOptions, torch.device], ModelFamily]
    inspect: Callable[[ModelSource], Inspection]


FAMILIES = (
    FamilyEntry(
        "Stable Diffusion 1.x and 2.x",
        stable_diffusion.detect,
        stable_diffusion.load,
        stable_diffusion_inspection.inspect,
    ),
)


def load_family(
    options: ModelOptions, prompt_options: PromptOptions | None = None, device: torch.device | str = "cpu"
) -> ModelFamily:
    """Loads the model at `options.pretrained_model_name_or_path`, in float32.

    Reads local files only, unless the path is a name on the Hub.

    Raises `UserError` when there is no model, when it is damaged or of a kind that is not known, and when flags
    contradict it.
    """
    if options.pretrained_model_name_or_path is None:
        raise UserError(f"{FLAG} is missing", "give the path of the model to train on")
    raise_together(model_problems(options))
    path = local_path(options.pretrained_model_name_or_path, FLAG)
    is_mapped = not options.disable_mmap_load_safetensors
    if path.is_dir():
        source: ModelSource = DiffusersFolder(path, is_mapped)
    else:
        source = ldm_layout.unwrapped(open_weights(path, is_mapped=is_mapped))
    for family in FAMILIES:
        if family.detect(source):
            return family.load(source, options, prompt_options or PromptOptions(), torch.device(device))
    raise UserError(f"{FLAG} {path}: {_what_else(source)}", f"known are {', '.join(entry.title for entry in FAMILIES)}")


def inspect_model(path: str) -> Inspection:
    """What a file of weights or a Diffusers folder contains, read from headers and shapes.

    Raises `UserError` for what cannot be read, and for folders of no known family.
    """
    place = local_path(path, "SOURCE")
    if not place.exists():
        raise UserError(f"{path}: there is no such file or folder", "check the path")
    source = DiffusersFolder(place) if place.is_dir() else open_shapes(place)
    for family in FAMILIES:
        if family.detect(source):
            return family.inspect(source)
    if isinstance(source, DiffusersFolder):
        raise UserError(f"{path}: {_what_else(source)}", "give the folder of a model, or a file of weights")
    return Inspection(str(place), _what_else(source), (count_tensors("all", source.tensors),), source.metadata)


def _what_else(source: ModelSource) -> str:
    if isinstance(source, WeightFile):
        kind = kind_of_keys(source.tensors)
        return "not a model of a known family" if kind is None else f"the file is {kind.phrase}"
    kind = kind_of_folder(source.path)
    return "not a model of a known family" if kind is None else f"the folder holds {kind.phrase}"
