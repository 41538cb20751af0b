"""The configuration that a single file cannot express in its weights: a metadata entry for models that differ.

The number of attention heads, the VAE's scaling factor, the noise schedule and the prediction type are not in the
tensors. Readers of such files, this program too, assume those of Stable Diffusion. A model with other values gets a
metadata entry, a JSON object of configurations by part; a usual model gets none.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Mapping
from typing import Any

import torch

from library.cli.errors import UserError
from library.models.layouts import ldm_text, ldm_unet, ldm_vae
from library.models.layouts.ldm_keys import section_of
from library.models.layouts.parts import ModelParts
from library.models.weights.weight_writing import StoredTensor

logger = logging.getLogger(__name__)

ENTRY = "config_not_in_weights"
_USUAL_SCHEDULER = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "prediction_type": "epsilon",
}
# without effect on the result, or implied by the weights
_IGNORED = ("sample_size", "use_linear_projection", "force_upcast")
_HARMLESS = {"upcast_attention"}  # only changes precision


def overrides_entry(
    parts: ModelParts, scheduler: Mapping[str, Any], tensors: Mapping[str, StoredTensor], *, is_v2: bool
) -> dict[str, str]:
    """The metadata entry for a single file with `tensors`; empty when all values are as readers assume.

    `scheduler`: entries of a Diffusers scheduler's configuration. Logs a warning where other programs would build
    a different network from the file.
    """
    found = {
        "unet": _differences(_assumed_unet(parts, tensors, is_v2), parts.unet.config),
        "vae": _differences(_assumed_vae(parts, tensors), parts.vae.config),
        "text_encoder": _differences(_assumed_text(tensors, is_v2), parts.text_encoder.config.to_dict()),
        "scheduler": _differences(_USUAL_SCHEDULER, {**_USUAL_SCHEDULER, **scheduler}),
    }
    unusual = {part: values for part, values in found.items() if values}
    _warn({part: set(values) - _HARMLESS for part, values in unusual.items() if part != "scheduler"})
    return {ENTRY: json.dumps(unusual)} if unusual else {}


def config_overrides(metadata: Mapping[str, str], part: str, source: str) -> dict[str, Any]:
    """The configuration of a part ("unet", "vae", "text_encoder", "scheduler") in a file's metadata; empty without one.

    Raises `UserError` for a damaged entry of the file called `source`.
    """
    try:
        values = json.loads(metadata.get(ENTRY, "{}")).get(part, {})
        return dict(values)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{source}: the metadata entry {ENTRY} is damaged: {error}", "remove or correct it") from error


def _section(tensors: Mapping[str, StoredTensor], prefix: str, part: str, ignored: tuple[str, ...] = ()) -> Any:
    empty = {key: torch.empty(tensor.shape, device="meta") for key, tensor in tensors.items() if key.startswith(prefix)}
    return section_of(empty, prefix, source="the model", part=part, ignored=ignored)


def _assumed_unet(parts: ModelParts, tensors: Mapping[str, StoredTensor], is_v2: bool) -> dict[str, Any]:
    inferred = ldm_unet.infer_config(_section(tensors, ldm_unet.PREFIX, ldm_unet.PART), is_v2=is_v2)
    heads, actual = inferred["attention_head_dim"], parts.unet.config["attention_head_dim"]
    if isinstance(heads, int) != isinstance(actual, int):  # a single number applies to every level
        levels = len(inferred["block_out_channels"])
        heads = [heads] * levels if isinstance(heads, int) else heads[0] if len(set(heads)) == 1 else heads
    return {**_defaults(parts.unet), **inferred, "attention_head_dim": heads}


def _assumed_vae(parts: ModelParts, tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    return {**_defaults(parts.vae), **ldm_vae.infer_config(_section(tensors, ldm_vae.PREFIX, ldm_vae.PART))}


def _assumed_text(tensors: Mapping[str, StoredTensor], is_v2: bool) -> dict[str, Any]:
    if is_v2:
        return ldm_text.infer_config_v2(_section(tensors, ldm_text.PREFIX_V2, ldm_text.PART))
    return ldm_text.infer_config_v1(_section(tensors, ldm_text.PREFIX_V1 + ldm_text.OPTIONAL_LEVEL, ldm_text.PART))


def _defaults(module: Any) -> dict[str, Any]:
    parameters = inspect.signature(type(module).__init__).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}


def _differences(assumed: Mapping[str, Any], actual: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of `actual` that are not as assumed; tuples and lists compare equal."""
    now = {key: json.loads(json.dumps(actual[key])) for key in assumed if key in actual and key not in _IGNORED}
    return {key: value for key, value in now.items() if value != json.loads(json.dumps(assumed[key]))}


def _warn(unusual: Mapping[str, set[str]]) -> None:
    named = [f"{part} {', '.join(sorted(keys))}" for part, keys in unusual.items() if keys]
    if named:
        logger.warning(
            "single files do not hold %s, in which this model differs from Stable Diffusion: other programs may load"
            " the wrong configuration; a Diffusers folder holds it",
            "; ".join(named),
        )
