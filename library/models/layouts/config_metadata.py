"""The configurations of a model's parts in the metadata of single files, whose layout has no place for them.

The number of attention heads, the VAE's scaling factor, the noise schedule and the prediction type are not in the
tensors. Each single file that is written has all configurations as JSON, by part; they are preferred when it is read.
What the tensors show (sizes, numbers of layers) is never taken from there.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig

from library.models.layouts import ldm_text, ldm_unet, ldm_vae
from library.models.layouts.ldm_keys import Section, section_of
from library.models.layouts.model_layout import ModelLayout
from library.models.layouts.parts import ModelParts
from library.models.layouts.stored_configs import ENTRY, HARMLESS, USUAL_SCHEDULER, as_json, read_stated_config
from library.models.text.text_encoder import TextEncoder, config_entries
from library.models.weights.weight_writing import StoredTensor

logger = logging.getLogger(__name__)


def config_entry(parts: ModelParts, layout: ModelLayout, scheduler: Mapping[str, Any]) -> dict[str, str]:
    """The metadata entry for a single file. `scheduler`: entries of a Diffusers scheduler's configuration."""
    configs = {name: _config_of(module) for name, module in parts.modules.items()}
    # some layouts have linear projections around attention, whatever the model in memory has
    configs["unet"]["use_linear_projection"] |= layout.has_linear_projections
    return {ENTRY: json.dumps({**configs, "scheduler": {**USUAL_SCHEDULER, **scheduler}}, sort_keys=True)}


def _config_of(module: nn.Module) -> dict[str, Any]:
    """Without the entries about a file or a version, whose names begin with an underscore."""
    if isinstance(module, TextEncoder):
        return config_entries(module.config)
    assert isinstance(module, (UNet2DConditionModel, AutoencoderKL))
    return {key: value for key, value in json.loads(module.to_json_string()).items() if not key.startswith("_")}


def stated_config(
    metadata: Mapping[str, str], part: str, inferred: Mapping[str, Any], section: Section
) -> dict[str, Any]:
    """`read_stated_config` of a part with the defaults of its class."""
    return read_stated_config(metadata, part, _defaults(part), inferred, source=section.source, title=section.part)


def _defaults(part: str) -> dict[str, Any]:
    of_class = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}.get(part)
    if of_class is None:
        return config_entries(CLIPTextConfig())
    parameters = inspect.signature(of_class.__init__).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}


def part_section(part: str, tensors: Mapping[str, torch.Tensor], layout: ModelLayout, source: str) -> Section:
    """The tensors of a part in a single file."""
    section = partial(section_of, tensors, source=source)
    if part == "unet":
        return section(ldm_unet.PREFIX, part=ldm_unet.PART)
    if part == "vae":
        return section(ldm_vae.PREFIX, part=ldm_vae.PART, ignored=ldm_vae.TRAINING_ONLY)
    return ldm_text.section_in_file(tensors, layout.text_encoder(part), source)


def assumed_config(part: str, section: Section, layout: ModelLayout) -> dict[str, Any]:
    """The configuration of a part that its tensors in a single file show. Raises `UserError`."""
    if part == "unet":
        return ldm_unet.infer_config(section, layout)
    if part == "vae":
        return ldm_vae.infer_config(section, layout.scaling_factor)
    return ldm_text.infer_config(section, layout.text_encoder(part))


# ---- what other programs do not know


def warn_of_unusual_parts(parts: ModelParts, layout: ModelLayout, tensors: Mapping[str, StoredTensor]) -> None:
    """Logs where other programs, which do not read the metadata, would build a different network from `tensors`."""
    shapes = {key: torch.empty(tensor.shape, device="meta") for key, tensor in tensors.items()}
    levels = len(parts.unet.config["block_out_channels"])
    unusual = []
    for part, module in parts.modules.items():
        values = assumed_config(part, part_section(part, shapes, layout, "the model"), layout)
        usual = values if part in parts.text_encoders else {**_defaults(part), **values}
        actual = _config_of(module)
        keys = [
            key
            for key in sorted(usual.keys() & actual.keys() - HARMLESS)
            if not _are_equal(actual[key], usual[key], levels)
        ]
        unusual += [f"{part} {', '.join(keys)}"] if keys else []
    if unusual:
        logger.warning(
            "single files do not hold %s, in which this model differs from %s: other programs may load the wrong"
            " configuration; a Diffusers folder holds it",
            "; ".join(unusual),
            layout.title,
        )


def _are_equal(value: Any, usual: Any, levels: int) -> bool:
    """A single number applies to every level, and is equal to a list of it."""
    value, usual = as_json(value), as_json(usual)
    if isinstance(value, list) != isinstance(usual, list):
        value, usual = (each if isinstance(each, list) else [each] * levels for each in (value, usual))
    return value == usual
