"""Reads the configurations that the metadata of a single file holds (`config_metadata` writes them). No torch."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from typing import Any

from library.cli.errors import first_line, listed

logger = logging.getLogger(__name__)

ENTRY = "diffusers_config"
_EARLIER_ENTRY = "config_not_in_weights"  # of files by earlier versions: only what differs from Stable Diffusion
# of the keys that `infer_config` gives, those that it can only assume
_ASSUMED = {
    "attention_head_dim", "norm_num_groups", "scaling_factor", "num_attention_heads", "hidden_act", "layer_norm_eps",
}  # fmt: skip
_NAMES = {"act_fn", "hidden_act", "beta_schedule", "prediction_type"}  # checked where they are used
USUAL_SCHEDULER = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "prediction_type": "epsilon",
}
# that others read differently than we do has no effect on the result
HARMLESS = {"sample_size", "use_linear_projection", "force_upcast", "upcast_attention"}


def read_stated_config(
    metadata: Mapping[str, str],
    part: str,
    defaults: Mapping[str, Any],
    inferred: Mapping[str, Any],
    *,
    source: str,
    title: str,
) -> dict[str, Any]:
    """What a file's metadata says of a part ("unet", "vae", "text_encoder", "scheduler") beside its tensors.

    `defaults`: of the part's class. `inferred`: the configuration that the tensors show. Empty where the metadata says
    nothing, and, with a warning that names the `source` and the part's `title`, where it is damaged or describes
    another model.
    """
    entry = ENTRY if ENTRY in metadata else _EARLIER_ENTRY
    try:
        stated = dict(json.loads(metadata.get(entry, "{}")).get(part, {}))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        say_misfit(source, title, f"the entry {entry} is damaged: {first_line(error)}")
        return {}
    usual = {**defaults, **inferred}
    known = {key: value for key, value in stated.items() if key in usual or part == "scheduler"}
    wrong = [key for key, value in known.items() if not _fits(key, value, usual.get(key), key in inferred)]
    if wrong:
        say_misfit(source, title, f"{listed(wrong, 3)} cannot be right for its tensors")
        return {}
    return {key: value for key, value in known.items() if key not in inferred or key in _ASSUMED}


def read_stated_scheduler(metadata: Mapping[str, str], source: str) -> dict[str, Any]:
    """What a file's metadata says of the noise schedule and the prediction type."""
    return read_stated_config(metadata, "scheduler", USUAL_SCHEDULER, {}, source=source, title="scheduler")


def say_misfit(source: str, title: str, why: str) -> None:
    """Warns that a part is not built as the metadata says, but from its tensors alone."""
    logger.warning("%s: the configuration of the %s in its metadata is ignored: %s", source, title, why)


def _fits(key: str, value: Any, usual: Any, is_inferred: bool) -> bool:
    """Whether a value can be meant: what tensors show must be equal, the rest of the kind that is usual."""
    if is_inferred and key not in _ASSUMED and key not in HARMLESS:
        return value == as_json(usual)
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


def as_json(value: Any) -> Any:
    """Tuples and lists compare equal."""
    return json.loads(json.dumps(value))
