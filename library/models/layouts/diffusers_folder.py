"""Reads a Diffusers model folder: configurations and weights of its parts, from local files only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn

from library.cli.errors import UserError, raise_together
from library.models.layouts.parts import ModelParts, empty_text_encoder, empty_unet, empty_vae
from library.models.text.text_encoder import TextEncoder
from library.models.weights.checkpoint_files import open_weights
from library.models.weights.lazy_tensors import renamed
from library.models.weights.model_files import ModelFolder
from library.models.weights.module_weights import fill_module
from library.models.weights.path_checks import WEIGHT_FILES, find_weights

# names that Diffusers gave the attention of a VAE before version 0.17
_OLD_ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True)
class DiffusersFolder(ModelFolder):
    """A folder whose weights can be read too; `is_mapped`: how, as `open_weights` has it."""

    is_mapped: bool = True

    def tensors(
        self, part: str, subfolder: str, weights: Path | None = None
    ) -> tuple[Path, Mapping[str, torch.Tensor]]:
        """The file of weights of one part ("unet", "vae", "text_encoder") and its tensors, under current names.

        `weights`: that file, else the one that Diffusers looks for.
        """
        path = weights or find_weights(self.path / subfolder, part)
        if path is None:
            hint = f"looked for {', '.join(WEIGHT_FILES[part])}"
            raise UserError(f"{self.path / subfolder} holds no weights", hint)
        tensors = open_weights(path, is_mapped=self.is_mapped).tensors
        return path, renamed(tensors, _NAMES[part](tensors))


def load_folder(folder: DiffusersFolder, vae: AutoencoderKL | None = None) -> ModelParts:
    """Builds U-Net, VAE and text encoder of a folder, float32, frozen, in eval mode.

    `vae` takes the place of the folder's own, which is then not read and may be missing. Raises one `UserError` for all
    parts: what is missing or does not fit its config.json.
    """
    parts: list[Any] = []
    errors: list[UserError] = []
    for part in _PARTS:
        try:
            parts.append(vae if part == "vae" and vae is not None else load_part(folder, part))
        except UserError as error:
            errors.append(error)
    raise_together(errors)
    return ModelParts(*parts)


def load_part(
    folder: DiffusersFolder, part: str, subfolder: str | None = None, weights: Path | None = None
) -> nn.Module:
    """Builds one part ("unet", "vae", "text_encoder") from the folder of its name or from `subfolder`.

    `weights`: the file to read, else the one that Diffusers looks for there. Raises `UserError` for what is missing or
    does not fit its config.json.
    """
    title, build_empty = _PARTS[part]
    subfolder = part if subfolder is None else subfolder
    config_name = f"{subfolder}/config.json".removeprefix("/")
    module = build_empty(folder.read_json(config_name), str(folder.path / config_name))
    path, tensors = folder.tensors(part, subfolder, weights)
    network = module.text_model if isinstance(module, TextEncoder) else module
    fill_module(network, tensors, source=str(path), part=title)
    return module


def _unet_names(keys: Iterable[str]) -> dict[str, str]:
    return {key: key for key in keys}


def _text_encoder_names(keys: Iterable[str]) -> dict[str, str]:
    """Without the level `text_model`, which depends on the version of `transformers`, and without other keys."""
    names = {key.removeprefix("text_model."): key for key in keys}
    kept = ("embeddings.", "encoder.", "final_layer_norm.")
    return {new: old for new, old in names.items() if new.startswith(kept) and not new.endswith(".position_ids")}


def vae_names(keys: Iterable[str]) -> dict[str, str]:
    """Current names of a VAE's tensors -> those given, which may be older."""
    return {_current_name(key): key for key in keys}


def _current_name(key: str) -> str:
    if ".attentions." not in key:
        return key
    module, layer, kind = key.rsplit(".", 2)
    return f"{module}.{_OLD_ATTENTION_NAMES.get(layer, layer)}.{kind}"


# current names of a part's tensors -> those in its file
_NAMES = {"unet": _unet_names, "vae": vae_names, "text_encoder": _text_encoder_names}
_PARTS: dict[str, tuple[str, Callable[..., nn.Module]]] = {
    "unet": ("U-Net", empty_unet),
    "vae": ("VAE", empty_vae),
    "text_encoder": ("text encoder", empty_text_encoder),
}
