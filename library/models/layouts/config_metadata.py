"""The configurations of a model's parts in the metadata of single files, whose layout has no place for them.

The number of attention heads, the VAE's scaling factor, the noise schedule and the prediction type are not in the
tensors. Each single file that is written has all configurations as JSON, by part; they are preferred when it is read.
What the tensors show (sizes, numbers of layers) is never taken from there.
"""

from __future__ import annotations

import inspect
import json
import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig

from library.cli.errors import first_line, listed
from library.models.layouts import ldm_text, ldm_unet, ldm_vae
from library.models.layouts.ldm_keys import section_of
from library.models.layouts.parts import ModelParts
from library.models.text.text_encoder import config_entries
from library.models.weights.weight_writing import StoredTensor

logger = logging.getLogger(__name__)

ENTRY = "diffusers_config"
_EARLIER_ENTRY = "config_not_in_weights"  # of files by earlier versions: only what differs from Stable Diffusion
# of the keys that `infer_config` gives, those that it can only assume
_ASSUMED = {
    "attention_head_dim", "norm_num_groups", "scaling_factor", "num_attention_heads", "hidden_act", "layer_norm_eps",
}  # fmt: skip
_NAMES = {"act_fn", "hidden_act", "beta_schedule", "prediction_type"}  # checked where they are used
_TITLES = {"unet": "U-Net", "vae": "VAE", "text_encoder": "text encoder", "scheduler": "scheduler"}
_USUAL_SCHEDULER = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "prediction_type": "epsilon",
}
# that others read differently than we do has no effect on the result
_HARMLESS = {"sample_size", "use_linear_projection", "force_upcast", "upcast_attention"}


def config_entry(parts: ModelParts, scheduler: Mapping[str, Any], *, is_v2: bool) -> dict[str, str]:
    """The metadata entry for a single file. `scheduler`: entries of a Diffusers scheduler's configuration."""
    unet = _config_of(parts.unet)
    # SD 2.x files hold linear projections around attention, whatever the model in memory has
    unet["use_linear_projection"] = is_v2 or unet["use_linear_projection"]
    configs = {
        "unet": unet,
        "vae": _config_of(parts.vae),
        "text_encoder": config_entries(parts.text_encoder.config),
        "scheduler": {**_USUAL_SCHEDULER, **scheduler},
    }
    return {ENTRY: json.dumps(configs, sort_keys=True)}


def _config_of(module: UNet2DConditionModel | AutoencoderKL) -> dict[str, Any]:
    """Without the entries about a file or a version, whose names begin with an underscore."""
    return {key: value for key, value in json.loads(module.to_json_string()).items() if not key.startswith("_")}


def stated_config(metadata: Mapping[str, str], part: str, inferred: Mapping[str, Any], source: str) -> dict[str, Any]:
    """What a file's metadata says of a part ("unet", "vae", "text_encoder", "scheduler") beside its tensors.

    `inferred`: the configuration that the tensors show. Empty where the metadata says nothing, and, with a warning that
    names the `source`, where it is damaged or describes another model.
    """
    entry = ENTRY if ENTRY in metadata else _EARLIER_ENTRY
    try:
        stated = dict(json.loads(metadata.get(entry, "{}")).get(part, {}))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        _say_ignored(source, part, f"the entry {entry} is damaged: {first_line(error)}")
        return {}
    usual = {**_defaults(part), **inferred}
    known = {key: value for key, value in stated.items() if key in usual or part == "scheduler"}
    wrong = [key for key, value in known.items() if not _fits(key, value, usual.get(key), key in inferred)]
    if wrong:
        _say_ignored(source, part, f"{listed(wrong, 3)} cannot be right for its tensors")
        return {}
    return {key: value for key, value in known.items() if key not in inferred or key in _ASSUMED}


def say_misfit(source: str, part: str, error: Exception) -> None:
    """Warns that a part cannot be built as the metadata says, and is built from its tensors alone."""
    _say_ignored(source, part, first_line(error))


def _say_ignored(source: str, part: str, why: str) -> None:
    logger.warning("%s: the configuration of the %s in its metadata is ignored: %s", source, _TITLES[part], why)


def _fits(key: str, value: Any, usual: Any, is_inferred: bool) -> bool:
    """Whether a value can be meant: what tensors show must be equal, the rest of the kind that is usual."""
    if is_inferred and key not in _ASSUMED and key not in _HARMLESS:
        return value == _as_json(usual)
    kinds = _kinds(value)
    if usual is None:
        return "other" not in kinds
    if kinds == {"str"}:
        return key in _NAMES or value == usual
    return kinds <= _kinds(usual) or (value is None and key.endswith(("_id", "_size")))


def _kinds(value: Any) -> set[str]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return {_kind(each) for each in values}


def _kind(value: Any) -> str:
    if isinstance(value, (bool, str)) or value is None:
        return type(value).__name__
    return "number" if isinstance(value, (int, float)) and math.isfinite(value) else "other"


def _defaults(part: str) -> dict[str, Any]:
    if part == "text_encoder":
        return config_entries(CLIPTextConfig())
    if part == "scheduler":
        return _USUAL_SCHEDULER
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
            for key in sorted(usual.keys() & actual[part].keys() - _HARMLESS)
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
    value, usual = _as_json(value), _as_json(usual)
    if isinstance(value, list) != isinstance(usual, list):
        value, usual = (each if isinstance(each, list) else [each] * levels for each in (value, usual))
    return value == usual


def _as_json(value: Any) -> Any:
    """Tuples and lists compare equal."""
    return json.loads(json.dumps(value))


def _assumed_text(tensors: Mapping[str, StoredTensor], is_v2: bool) -> dict[str, Any]:
    if is_v2:
        return ldm_text.infer_config_v2(_section(tensors, ldm_text.PREFIX_V2, ldm_text.PART))
    return ldm_text.infer_config_v1(_section(tensors, ldm_text.PREFIX_V1 + ldm_text.OPTIONAL_LEVEL, ldm_text.PART))


def _section(tensors: Mapping[str, StoredTensor], prefix: str, part: str) -> Any:
    empty = {key: torch.empty(tensor.shape, device="meta") for key, tensor in tensors.items() if key.startswith(prefix)}
    return section_of(empty, prefix, source="the model", part=part)
