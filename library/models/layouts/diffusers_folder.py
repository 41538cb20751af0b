"""Reads a Diffusers model folder: configurations and weights of its parts, from local files only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from library.cli.errors import UserError, raise_together
from library.models.layouts.ldm_text import LEVEL
from library.models.layouts.model_layout import ModelLayout, TextEncoderLayout
from library.models.layouts.parts import ModelParts, empty_text_encoder, empty_unet, empty_vae
from library.models.text.text_encoder import TextEncoder
from library.models.weights.checkpoint_files import open_weights
from library.models.weights.lazy_tensors import renamed
from library.models.weights.model_files import ModelFolder
from library.models.weights.module_weights import FLOAT32, fill_module
from library.models.weights.path_checks import find_weights, looked_for

# names that Diffusers gave the attention of a VAE before version 0.17
_OLD_ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True)
class DiffusersFolder(ModelFolder):
    """A folder whose weights can be read too; `is_mapped`: how, as `open_weights` has it."""

    is_mapped: bool = True

    def tensors(
        self, part: str, subfolder: str, weights: Path | None = None
    ) -> tuple[Path, Mapping[str, torch.Tensor]]:
        """The file of weights of a kind of part ("unet", "vae", "text_encoder") in `subfolder`, and its tensors.

        `weights`: that file, else the one that Diffusers looks for.
        """
        path = weights or find_weights(self.path / subfolder, part)
        if path is None:
            raise UserError(f"{self.path / subfolder} holds no weights", looked_for(part))
        return path, open_weights(path, is_mapped=self.is_mapped).tensors


def load_folder(
    folder: DiffusersFolder,
    layout: ModelLayout,
    vae: AutoencoderKL | None = None,
    dtypes: Mapping[str, torch.dtype] = FLOAT32,
) -> ModelParts:
    """Builds U-Net, VAE and text encoders of a folder, frozen, in eval mode.

    `dtypes`: of the parts "unet", "vae" and "text_encoder", float32 where not given. `vae` takes the place of the
    folder's own, which is then not read and may be missing. Raises one `UserError` for all parts: what is missing or
    does not fit its config.json.
    """
    loaders: dict[str, Callable[[], Any]] = {
        "unet": lambda: _load_unet(folder, dtypes.get("unet", torch.float32)),
        "vae": lambda: (
            vae or load_vae_part(folder, "vae", layout.scaling_factor, dtype=dtypes.get("vae", torch.float32))
        ),
        **{
            text.name: partial(_load_text_encoder, folder, text, dtypes.get("text_encoder", torch.float32))
            for text in layout.text_encoders
        },
    }
    parts: dict[str, Any] = {}
    errors: list[UserError] = []
    for name, load in loaders.items():
        try:
            parts[name] = load()
        except UserError as error:
            errors.append(error)
    raise_together(errors)
    return ModelParts(parts.pop("unet"), parts.pop("vae"), parts)


def _load_unet(folder: DiffusersFolder, dtype: torch.dtype) -> UNet2DConditionModel:
    unet = empty_unet(folder.read_json("unet/config.json"), str(folder.path / "unet" / "config.json"))
    path, tensors = folder.tensors("unet", "unet")
    fill_module(unet, tensors, dtype, source=str(path), part="U-Net")
    return unet


def load_vae_part(
    folder: DiffusersFolder,
    subfolder: str,
    scaling_factor: float,
    *,
    weights: Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> AutoencoderKL:
    """Builds the VAE in `subfolder`, which may be "".

    `scaling_factor`: where its config.json does not say it. `weights`: the file to read, else the one that Diffusers
    looks for. Raises `UserError` for what is missing or does not fit its config.json.
    """
    config_name = f"{subfolder}/config.json".removeprefix("/")
    config = {"scaling_factor": scaling_factor, **folder.read_json(config_name)}
    vae = empty_vae(config, str(folder.path / config_name))
    path, tensors = folder.tensors("vae", subfolder, weights)
    named = renamed(tensors, vae_names(tensors))
    fill_module(vae, named, dtype, source=str(path), part="VAE")
    return vae


def _load_text_encoder(folder: DiffusersFolder, text: TextEncoderLayout, dtype: torch.dtype) -> TextEncoder:
    config_name = f"{text.name}/config.json"
    encoder = empty_text_encoder(folder.read_json(config_name), str(folder.path / config_name), text)
    path, tensors = folder.tensors("text_encoder", text.name)
    names = renamed(tensors, _text_encoder_names(tensors, text))
    fill_module(encoder, names, dtype, source=str(path), part=text.title)
    return encoder


def _text_encoder_names(keys: Iterable[str], text: TextEncoderLayout) -> dict[str, str]:
    """Names in `TextEncoder` -> those given, which may lack the level `text_model`; without keys that are not used."""
    names = {key.removeprefix(LEVEL): key for key in keys}
    kept = ("embeddings.", "encoder.", "final_layer_norm.")
    inner = {new: old for new, old in names.items() if new.startswith(kept) and not new.endswith(".position_ids")}
    projection = {new: old for new, old in names.items() if text.has_projection and new.startswith("text_projection.")}
    return {**{LEVEL + new: old for new, old in inner.items()}, **projection}


def vae_names(keys: Iterable[str]) -> dict[str, str]:
    """Current names of a VAE's tensors -> those given, which may be older."""
    return {_current_name(key): key for key in keys}


def _current_name(key: str) -> str:
    if ".attentions." not in key:
        return key
    module, layer, kind = key.rsplit(".", 2)
    return f"{module}.{_OLD_ATTENTION_NAMES.get(layer, layer)}.{kind}"
