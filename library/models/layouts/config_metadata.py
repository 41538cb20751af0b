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
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig

from library.models.layouts import ldm_text, ldm_unet, ldm_vae
from library.models.layouts.ldm_keys import section_of
from library.models.layouts.parts import ModelParts
from library.models.layouts.stored_configs import ENTRY, HARMLESS, USUAL_SCHEDULER, as_json, read_stated_config
from library.models.text.text_encoder import config_entries
from library.models.weights.weight_writing import StoredTensor

logger = logging.getLogger(__name__)


def config_entry(parts: ModelParts, scheduler: Mapping[str, Any], *, is_v2: bool) -> dict[str, str]:
    """The metadata entry for a single file. `scheduler`: entries of a Diffusers scheduler's configuration."""
    unet = _config_of(parts.unet)
    # SD 2.x files hold linear projections around attention, whatever the model in memory has
    unet["use_linear_projection"] = is_v2 or unet["use_linear_projection"]
    configs = {
        "unet": unet,
        "vae": _config_of(parts.vae),
        "text_encoder": config_entries(parts.text_encoder.config),
        "scheduler": {**USUAL_SCHEDULER, **scheduler},
    }
    return {ENTRY: json.dumps(configs, sort_keys=True)}


def _config_of(module: UNet2DConditionModel | AutoencoderKL) -> dict[str, Any]:
    """Without the entries about a file or a version, whose names begin with an underscore."""
    return {key: value for key, value in json.loads(module.to_json_string()).items() if not key.startswith("_")}


def stated_config(metadata: Mapping[str, str], part: str, inferred: Mapping[str, Any], source: str) -> dict[str, Any]:
    """`read_stated_config` with the defaults of the part's class."""
    return read_stated_config(metadata, part, _defaults(part), inferred, source)


def _defaults(part: str) -> dict[str, Any]:
    if part == "text_encoder":
        return config_entries(CLIPTextConfig())
    if part == "scheduler":
        return USUAL_SCHEDULER
    of_class = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[part]
    parameters = inspect.signature(of_class.__init__).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}


# ---- what other programs do not know


def warn_of_unusual_parts(parts: ModelParts, tensors: Mapping[str, StoredTensor], *, is_v2: bool) -> None:
    """Logs where other programs, which do not read the metadata, would build a different network from `tensors`."""
    unet = ldm_unet.infer_config(_section(tensors, ldm_unet.PREFIX, ldm_unet.PART), is_v2=is_v2)
    vae = ldm_vae.infer_config(_section(tensors, ldm_vae.PREFIX, ldm_vae.PART))
    assumed = {"unet": unet, "vae": vae, "text_encoder": _assumed_text(tensors, is_v2)}
    actual = {
        "unet": _config_of(parts.unet),
        "vae": _config_of(parts.vae),
        "text_encoder": config_entries(parts.text_encoder.config),
    }
    levels = len(unet["block_out_channels"])
    unusual = []
    for part, values in assumed.items():
        usual = {**_defaults(part), **values} if part != "text_encoder" else values
        keys = [
            key
            for key in sorted(usual.keys() & actual[part].keys() - HARMLESS)
            if not _are_equal(actual[part][key], usual[key], levels)
        ]
        unusual += [f"{part} {', '.join(keys)}"] if keys else []
    if unusual:
        logger.warning(
            "single files do not hold %s, in which this model differs from Stable Diffusion: other programs may load"
            " the wrong configuration; a Diffusers folder holds it",
            "; ".join(unusual),
        )


def _are_equal(value: Any, usual: Any, levels: int) -> bool:
    """A single number applies to every level, and is equal to a list of it."""
    value, usual = as_json(value), as_json(usual)
    if isinstance(value, list) != isinstance(usual, list):
        value, usual = (each if isinstance(each, list) else [each] * levels for each in (value, usual))
    return value == usual


def _assumed_text(tensors: Mapping[str, StoredTensor], is_v2: bool) -> dict[str, Any]:
    if is_v2:
        return ldm_text.infer_config_v2(_section(tensors, ldm_text.PREFIX_V2, ldm_text.PART))
    return ldm_text.infer_config_v1(_section(tensors, ldm_text.PREFIX_V1 + ldm_text.OPTIONAL_LEVEL, ldm_text.PART))


def _section(tensors: Mapping[str, StoredTensor], prefix: str, part: str) -> Any:
    empty = {key: torch.empty(tensor.shape, device="meta") for key, tensor in tensors.items() if key.startswith(prefix)}
    return section_of(empty, prefix, source="the model", part=part)
