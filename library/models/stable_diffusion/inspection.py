"""What a Stable Diffusion 1.x or 2.x model consists of, without reading its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from library.cli.errors import UserError, listed, plural
from library.models.layouts import ldm_text, ldm_unet, ldm_vae
from library.models.layouts.config_metadata import stated_config
from library.models.layouts.diffusers_folder import DiffusersFolder
from library.models.layouts.ldm_keys import section_of
from library.models.stable_diffusion.detection import V_PREDICTION, DetectedModel, detect
from library.models.weights.checkpoint_files import WeightFile, open_shapes
from library.models.weights.inspection import Inspection, PartContents, count_tensors
from library.models.weights.modelspec import kept_entries
from library.models.weights.path_checks import WEIGHT_FILES, find_weights

_TITLES = {"unet": "U-Net", "vae": "VAE", "text_encoder": "text encoder"}
_TEXT_PREFIX = "cond_stage_model."  # of both versions
_SINGLE_FILE_PARTS = (
    ("unet", ldm_unet.PREFIX),
    ("vae", ldm_vae.PREFIX),
    ("text_encoder", _TEXT_PREFIX),
    ("averaged weights (EMA), which are not read", "model_ema."),
)


def inspect(source: DiffusersFolder | WeightFile) -> Inspection:
    """Version, prediction type, dimensions and contents; of a file's tensors, only shapes are used.

    Raises `UserError` for what cannot be read.
    """
    return _inspect_file(source) if isinstance(source, WeightFile) else _inspect_folder(source)


def _inspect_file(file: WeightFile) -> Inspection:
    detected = detect(file)
    remaining = dict.fromkeys(file.tensors)
    parts = []
    for part, prefix in _SINGLE_FILE_PARTS:
        keys = [key for key in remaining if key.startswith(prefix)]
        for key in keys:
            del remaining[key]
        if keys:
            parts.append(_count(part, file.tensors, keys, _dimensions_in_file(part, file, detected.is_v2)))
    if remaining:
        others = list(remaining)
        parts.append(_count("other keys, which are not read", file.tensors, others, listed(others, 3)))
    return _inspection(detected, tuple(parts), file.metadata)


def _count(part: str, tensors: Mapping[str, torch.Tensor], keys: list[str], dimensions: str) -> PartContents:
    return count_tensors(_TITLES.get(part, part), {key: tensors[key] for key in keys}, dimensions)


def _dimensions_in_file(part: str, file: WeightFile, is_v2: bool) -> str:
    if part not in _DIMENSIONS:
        return ""
    try:
        inferred = _INFER[part](file, is_v2)
    except UserError as error:
        return f"incomplete: {error.message}"
    return _DIMENSIONS[part](inferred | stated_config(file.metadata, part, inferred, str(file.path)))


def _infer_unet(file: WeightFile, is_v2: bool) -> dict[str, Any]:
    section = section_of(file.tensors, ldm_unet.PREFIX, source=str(file.path), part=ldm_unet.PART)
    return ldm_unet.infer_config(section, is_v2=is_v2)


def _infer_vae(file: WeightFile, is_v2: bool) -> dict[str, Any]:
    section = section_of(file.tensors, ldm_vae.PREFIX, source=str(file.path), part=ldm_vae.PART)
    return ldm_vae.infer_config(section)


def _infer_text(file: WeightFile, is_v2: bool) -> dict[str, Any]:
    prefix = ldm_text.PREFIX_V2 if is_v2 else ldm_text.PREFIX_V1
    if not is_v2 and any(key.startswith(prefix + ldm_text.OPTIONAL_LEVEL) for key in file.tensors):
        prefix += ldm_text.OPTIONAL_LEVEL
    section = section_of(file.tensors, prefix, source=str(file.path), part=ldm_text.PART)
    return ldm_text.infer_config_v2(section) if is_v2 else ldm_text.infer_config_v1(section)


_INFER: dict[str, Callable[[WeightFile, bool], dict[str, Any]]] = {
    "unet": _infer_unet,
    "vae": _infer_vae,
    "text_encoder": _infer_text,
}


def _inspect_folder(folder: DiffusersFolder) -> Inspection:
    parts = []
    metadata: dict[str, str] = {}
    for part, title in _TITLES.items():
        path = find_weights(folder.path / part, part)
        if path is None and part == "vae":
            continue  # as in a file that lacks one: --vae can give another
        if path is None:
            raise UserError(f"{folder.path / part} holds no weights", f"looked for {', '.join(WEIGHT_FILES[part])}")
        file = open_shapes(path)
        metadata = {**kept_entries(file.metadata), **metadata}
        dimensions = _DIMENSIONS[part](folder.read_json(f"{part}/config.json"))
        parts.append(_count(title, file.tensors, list(file.tensors), dimensions))
    return _inspection(detect(folder), tuple(parts), metadata)


def _inspection(detected: DetectedModel, parts: tuple[PartContents, ...], metadata: Mapping[str, str]) -> Inspection:
    prediction = {V_PREDICTION: "v", None: "noise or v: the file does not say"}.get(detected.prediction_type, "noise")
    kind = f"Stable Diffusion {'2.x' if detected.is_v2 else '1.x'}"
    return Inspection(detected.source, kind, parts, metadata, prediction)


def _unet_dimensions(config: Mapping[str, Any]) -> str:
    return (
        f"channels {_joined(config.get('block_out_channels'))};"
        f" {plural(config.get('layers_per_block', 2), 'layer')} a level;"
        f" context width {config.get('cross_attention_dim')}; heads {_joined(config.get('attention_head_dim'))}"
    )


def _vae_dimensions(config: Mapping[str, Any]) -> str:
    return (
        f"channels {_joined(config.get('block_out_channels'))};"
        f" {plural(config.get('layers_per_block', 1), 'layer')} a level;"
        f" {config.get('latent_channels', 4)} channels of latents"
    )


def _text_dimensions(config: Mapping[str, Any]) -> str:
    return (
        f"{plural(config.get('num_hidden_layers', 12), 'layer')}; width {config.get('hidden_size')};"
        f" {config.get('vocab_size')} tokens"
    )


def _joined(values: Any) -> str:
    return ", ".join(map(str, values)) if isinstance(values, (list, tuple)) else str(values)


_DIMENSIONS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "unet": _unet_dimensions,
    "vae": _vae_dimensions,
    "text_encoder": _text_dimensions,
}
