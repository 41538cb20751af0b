"""The VAE of the Stability (LDM) layout: its configuration from the shapes of its tensors, and its names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from library.models.layouts.ldm_keys import Section, norm_groups
from library.models.weights.model_kinds import VAE_PREFIX

PREFIX = VAE_PREFIX
PART = "VAE"
TRAINING_ONLY = ("loss.", "model_ema.")  # keys of the VAE's own training that some files still hold

_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def module_names(config: Mapping[str, Any]) -> dict[str, str]:
    """Diffusers' module names -> those of the Stability layout, without its prefix; other names are equal."""
    names = {}
    num_levels = len(config["block_out_channels"])
    num_layers = config["layers_per_block"]
    for half in ("encoder", "decoder"):
        names[f"{half}.conv_norm_out"] = f"{half}.norm_out"
        for index in range(2):
            names[f"{half}.mid_block.resnets.{index}"] = f"{half}.mid.block_{index + 1}"
        for ours, theirs in _ATTENTION.items():
            names[f"{half}.mid_block.attentions.0.{ours}"] = f"{half}.mid.attn_1.{theirs}"
    for level in range(num_levels):
        mirrored = num_levels - 1 - level  # the layout numbers by resolution, Diffusers by order of use
        names.update(_layers(f"encoder.down_blocks.{level}", f"encoder.down.{level}", num_layers))
        names.update(_layers(f"decoder.up_blocks.{level}", f"decoder.up.{mirrored}", num_layers + 1))
        if level < num_levels - 1:
            names[f"encoder.down_blocks.{level}.downsamplers.0.conv"] = f"encoder.down.{level}.downsample.conv"
            names[f"decoder.up_blocks.{level}.upsamplers.0.conv"] = f"decoder.up.{mirrored}.upsample.conv"
    for module, name in list(names.items()):
        if ".resnets." in module:
            names[f"{module}.conv_shortcut"] = f"{name}.nin_shortcut"
    return names


def _layers(diffusers_level: str, ldm_level: str, num_layers: int) -> dict[str, str]:
    return {f"{diffusers_level}.resnets.{layer}": f"{ldm_level}.block.{layer}" for layer in range(num_layers)}


def infer_config(section: Section, scaling_factor: float) -> dict[str, Any]:
    """The arguments of Diffusers' `AutoencoderKL` for the VAE of a file; `scaling_factor` is not in the weights.

    Raises `UserError` when tensors that sizes are inferred from are missing.
    """
    num_levels = max(1, section.count("encoder.down."))
    first_layers = [f"encoder.down.{level}.block.0.conv1.weight" for level in range(num_levels)]
    return _config(section, first_layers, section.count("encoder.down.0.block."), scaling_factor)


def infer_diffusers_config(section: Section, scaling_factor: float) -> dict[str, Any]:
    """The same for a VAE whose tensors have Diffusers' names."""
    num_levels = max(1, section.count("encoder.down_blocks."))
    first_layers = [f"encoder.down_blocks.{level}.resnets.0.conv1.weight" for level in range(num_levels)]
    return _config(section, first_layers, section.count("encoder.down_blocks.0.resnets."), scaling_factor)


def _config(section: Section, first_layers: list[str], num_layers: int, scaling_factor: float) -> dict[str, Any]:
    channels = [section.shape(name, num_dims=4)[0] for name in first_layers]
    return {
        "in_channels": section.shape("encoder.conv_in.weight", num_dims=4)[1],
        "out_channels": section.shape("decoder.conv_out.weight", num_dims=4)[0],
        "latent_channels": section.shape("decoder.conv_in.weight", num_dims=4)[1],
        "block_out_channels": channels,
        "layers_per_block": num_layers,
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "norm_num_groups": norm_groups(channels),
        "scaling_factor": scaling_factor,
    }
