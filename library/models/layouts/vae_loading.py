"""Loads a VAE: a VAE alone or that of a model, in every layout."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from library.cli.errors import UserError
from library.models.layouts import ldm_layout, ldm_vae
from library.models.layouts.config_metadata import ENTRY
from library.models.layouts.diffusers_folder import DiffusersFolder, load_vae_part, vae_names
from library.models.layouts.ldm_keys import section_of
from library.models.weights.checkpoint_files import WeightFile, open_weights
from library.models.weights.hub_download import local_path
from library.models.weights.lazy_tensors import renamed
from library.models.weights.model_kinds import DIFFUSERS_VAE_MARK, has_vae
from library.models.weights.path_checks import VAE_FLAG


def load_vae(
    path: str,
    scaling_factor: float,
    *,
    dtype: torch.dtype = torch.float32,
    is_mapped: bool = True,
    flag: str = VAE_FLAG,
) -> AutoencoderKL:
    """The VAE at `path`: of a model (folder or single file), or a VAE alone (folder or file), in `dtype`.

    `scaling_factor`: where its files do not say it. `is_mapped`: how its weights are read, as `open_weights` has it.
    `flag`: what the user gave it with, for messages. Raises `UserError` where there is none.
    """
    source = local_path(path, flag)
    if source.is_dir():
        return _of_folder(DiffusersFolder(source, is_mapped), scaling_factor, dtype, flag)
    if not source.is_file():
        raise UserError(f"{flag} {path}: there is no such file or folder", "give the path of a VAE or a model")
    file = ldm_layout.unwrapped(open_weights(source, is_mapped=is_mapped))
    if not has_vae(file.tensors):
        raise UserError(f"{flag} {file.path} holds no VAE", "give a VAE, or a Stable Diffusion model with one")
    return _of_file(file, scaling_factor, dtype, is_mapped=is_mapped)


def _of_folder(folder: DiffusersFolder, scaling_factor: float, dtype: torch.dtype, flag: str) -> AutoencoderKL:
    if (folder.path / "vae").is_dir():
        return load_vae_part(folder, "vae", scaling_factor, dtype=dtype)
    if (folder.path / "config.json").is_file():
        return load_vae_part(folder, "", scaling_factor, dtype=dtype)
    raise UserError(
        f"{flag} {folder.path}: holds neither vae/ nor config.json", "give the folder of a VAE or of a model"
    )


def _of_file(file: WeightFile, scaling_factor: float, dtype: torch.dtype, *, is_mapped: bool) -> AutoencoderKL:
    """The VAE of a file; a file with a VAE alone is built as the config.json beside it says, where there is one."""
    section = partial(section_of, source=str(file.path), part=ldm_vae.PART, ignored=ldm_vae.TRAINING_ONLY)
    if any(key.startswith(ldm_vae.PREFIX) for key in file.tensors):
        return ldm_layout.load_vae(section(file.tensors, ldm_vae.PREFIX), file.metadata, scaling_factor, dtype)
    config = _vae_config(file.path.parent / "config.json")
    if any(key.startswith(DIFFUSERS_VAE_MARK) for key in file.tensors):
        if config is not None:
            folder = DiffusersFolder(file.path.parent, is_mapped)
            return load_vae_part(folder, "", scaling_factor, weights=file.path, dtype=dtype)
        named = renamed(file.tensors, vae_names(file.tensors))
        return ldm_layout.load_diffusers_vae(section(named, ""), scaling_factor, dtype)
    metadata = file.metadata if config is None else {ENTRY: json.dumps({"vae": config}), **file.metadata}
    return ldm_layout.load_vae(section(file.tensors, ""), metadata, scaling_factor, dtype)


def _vae_config(path: Path) -> dict[str, Any] | None:
    """The contents of a config.json, if it is that of a VAE."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return config if isinstance(config, dict) and config.get("_class_name") == "AutoencoderKL" else None
