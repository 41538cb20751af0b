"""What a whole model consists of, as the layout of its family describes it, without reading its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from library.cli.errors import UserError, listed, plural
from library.models.layouts import ldm_unet, ldm_vae
from library.models.layouts.config_metadata import assumed_config, part_section, stated_config
from library.models.layouts.diffusers_folder import DiffusersFolder
from library.models.layouts.model_layout import V_PREDICTION, ModelLayout, takes_masks
from library.models.weights.checkpoint_files import WeightFile, open_shapes
from library.models.weights.inspection import Inspection, PartContents, count_tensors
from library.models.weights.modelspec import kept_entries
from library.models.weights.path_checks import find_weights, looked_for


def inspect_parts(source: DiffusersFolder | WeightFile, layout: ModelLayout, prediction_type: str | None) -> Inspection:
    """Prediction type, dimensions and contents; of a file's tensors, only shapes are used.

    Raises `UserError` for what cannot be read.
    """
    prediction = {V_PREDICTION: "v", None: "noise or v: the file does not say"}.get(prediction_type, "noise")
    if isinstance(source, WeightFile):
        return Inspection(str(source.path), layout.title, _parts_of_file(source, layout), source.metadata, prediction)
    parts, metadata = _parts_of_folder(source, layout)
    return Inspection(str(source.path), layout.title, parts, metadata, prediction)


def _parts_of_file(file: WeightFile, layout: ModelLayout) -> tuple[PartContents, ...]:
    remaining = dict.fromkeys(file.tensors)
    prefixes = {
        "unet": ldm_unet.PREFIX,
        "vae": ldm_vae.PREFIX,
        **{text.name: text.file_prefix for text in layout.text_encoders},
        "ema": "model_ema.",
    }
    titles = {**layout.titles, "ema": "averaged weights (EMA), which are not read"}
    parts = []
    for part, prefix in prefixes.items():
        keys = [key for key in remaining if key.startswith(prefix)]
        for key in keys:
            del remaining[key]
        if keys:
            dimensions = "" if part == "ema" else _dimensions_in_file(part, file, layout)
            parts.append(_count(titles[part], file.tensors, keys, dimensions))
    if remaining:
        others = list(remaining)
        parts.append(_count("other keys, which are not read", file.tensors, others, listed(others, 3)))
    return tuple(parts)


def _count(title: str, tensors: Mapping[str, torch.Tensor], keys: list[str], dimensions: str) -> PartContents:
    return count_tensors(title, {key: tensors[key] for key in keys}, dimensions)


def _dimensions_in_file(part: str, file: WeightFile, layout: ModelLayout) -> str:
    section = part_section(part, file.tensors, layout, str(file.path))
    try:
        inferred = assumed_config(part, section, layout)
    except UserError as error:
        return f"incomplete: {error.message}"
    return _dimensions(part, inferred | stated_config(file.metadata, part, inferred, section))


def _parts_of_folder(folder: DiffusersFolder, layout: ModelLayout) -> tuple[tuple[PartContents, ...], dict[str, str]]:
    parts = []
    metadata: dict[str, str] = {}
    for part, title in layout.titles.items():
        path = find_weights(folder.path / part, part)
        if path is None and part == "vae":
            continue  # as in a file that lacks one: --vae can give another
        if path is None:
            raise UserError(f"{folder.path / part} holds no weights", looked_for(part))
        file = open_shapes(path)
        metadata = {**kept_entries(file.metadata), **metadata}
        dimensions = _dimensions(part, folder.read_json(f"{part}/config.json"))
        parts.append(_count(title, file.tensors, list(file.tensors), dimensions))
    return tuple(parts), metadata


def _dimensions(part: str, config: Mapping[str, Any]) -> str:
    return {"unet": _unet_dimensions, "vae": _vae_dimensions}.get(part, _text_dimensions)(config)


def _unet_dimensions(config: Mapping[str, Any]) -> str:
    channels = config.get("in_channels", 4), config.get("out_channels", 4)
    kind = f"inpainting: takes {channels[0]} channels, gives {channels[1]}; " if takes_masks(channels) else ""
    return (
        f"{kind}"
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
