"""The U-Net of the Stability (LDM) layout: its configuration from the shapes of its tensors, and its names.

That layout numbers all layers of the down path as `input_blocks.N` and those of the up path as `output_blocks.N`;
Diffusers groups them by resolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from library.cli.errors import UserError
from library.models.layouts.ldm_keys import Section, norm_groups
from library.models.layouts.model_layout import ModelLayout
from library.models.weights.model_kinds import UNET_PREFIX

PREFIX = UNET_PREFIX
PART = "U-Net"

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_SIZE_EMBEDDING = {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
_SIZE_EMBEDDING_WIDTH = 256  # of each number of sizes and crops, which is not in the weights
_HEAD_WIDTH = 64


def module_names(config: Mapping[str, Any]) -> dict[str, str]:
    """Diffusers' module names -> those of the Stability layout, without its prefix, for a U-Net's configuration.

    The table is one to one, so it can be inverted. Raises `UserError` for one that the layout has no names for.
    """
    num_layers = config["layers_per_block"]
    if not isinstance(num_layers, int):
        raise UserError(
            f"the {PART} has another number of layers in each level, {num_layers}, which single files cannot name",
            "save it as a Diffusers folder: diffusers or diffusers_safetensors",
        )
    names = dict(_ENDS)
    if config.get("addition_embed_type") is not None:
        names.update(_SIZE_EMBEDDING)
    names.update(_resnet("mid_block.resnets.0", "middle_block.0"))
    names["mid_block.attentions.0"] = "middle_block.1"
    names.update(_resnet("mid_block.resnets.1", "middle_block.2"))
    attends = ["CrossAttn" in kind for kind in config["down_block_types"]]
    names.update(_down_names(attends, num_layers))
    names.update(_up_names(attends[::-1], num_layers + 1))
    return names


def _down_names(attends: list[bool], num_layers: int) -> dict[str, str]:
    names: dict[str, str] = {}
    number = 1  # input_blocks.0 is conv_in
    for level, has_attention in enumerate(attends):
        for layer in range(num_layers):
            names.update(_resnet(f"down_blocks.{level}.resnets.{layer}", f"input_blocks.{number}.0"))
            if has_attention:
                names[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{number}.1"
            number += 1
        if level < len(attends) - 1:
            names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
            number += 1
    return names


def _up_names(attends: list[bool], num_layers: int) -> dict[str, str]:
    names: dict[str, str] = {}
    for level, has_attention in enumerate(attends):
        for layer in range(num_layers):
            number = level * num_layers + layer
            names.update(_resnet(f"up_blocks.{level}.resnets.{layer}", f"output_blocks.{number}.0"))
            if has_attention:
                names[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{number}.1"
        if level < len(attends) - 1:
            # the upsampler comes after the last layer of its level, and after that layer's attention
            position = 2 if has_attention else 1
            names[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{number}.{position}.conv"
    return names


def _resnet(diffusers_name: str, ldm_name: str) -> dict[str, str]:
    return {f"{diffusers_name}.{ours}": f"{ldm_name}.{theirs}" for ours, theirs in _RESNET.items()}


@dataclass(frozen=True)
class _Level:
    """One resolution of the down path. `depths`: transformer blocks of each of its layers, 0 without attention."""

    channels: int
    depths: tuple[int, ...]

    @property
    def num_layers(self) -> int:
        return len(self.depths)

    @property
    def attends(self) -> bool:
        return any(self.depths)


def infer_config(section: Section, layout: ModelLayout) -> dict[str, Any]:
    """The arguments of Diffusers' `UNet2DConditionModel` for the U-Net of a file.

    The number of attention heads is not in the weights. Raises `UserError`.
    """
    levels = _levels(section)
    channels = [level.channels for level in levels]
    attends = [level.attends for level in levels]
    if len({level.num_layers for level in levels}) != 1 or not any(attends):
        raise _unknown(section, f"levels of {[level.num_layers for level in levels]} layers, attention at {attends}")
    attention = f"input_blocks.{_first_attention(levels)}.1"
    return {
        "in_channels": section.shape("input_blocks.0.0.weight", num_dims=4)[1],
        "out_channels": section.shape("out.2.weight", num_dims=4)[0],
        "block_out_channels": channels,
        "layers_per_block": levels[0].num_layers,
        "down_block_types": ["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attends)],
        "cross_attention_dim": section.shape(f"{attention}.transformer_blocks.0.attn2.to_k.weight", num_dims=2)[1],
        "use_linear_projection": section.tensors[f"{attention}.proj_in.weight"].dim() == 2,
        # the number of heads: Diffusers misnames it
        "attention_head_dim": layout.num_heads or [max(1, width // _HEAD_WIDTH) for width in channels],
        "norm_num_groups": norm_groups(channels),
        **_depth_entries(section, [level.depths for level in levels]),
        **(_size_entries(section) if layout.takes_pooled_text else {}),
    }


def _depth_entries(section: Section, down: list[tuple[int, ...]]) -> dict[str, Any]:
    """The transformer blocks of attention layers, for U-Nets with another number than one in any.

    Distilled ones have other numbers in each layer, and nothing but one layer in the middle.
    """
    up, middle = _up_depths(section, down), section.count("middle_block.1.transformer_blocks.")
    has_middle = middle > 0 or section.count("middle_block.") > 1
    if {*sum(down + up, ()), middle} <= {0, 1} and has_middle:
        return {}
    if any(0 in depths and any(depths) for depths in down + up) or (has_middle and middle != down[-1][0]):
        raise _unknown(
            section, f"levels of {down} transformer blocks, {middle} in the middle block, {up} on the way up"
        )
    entries: dict[str, Any] = {"transformer_layers_per_block": [_stated(depths) for depths in down]}
    if any({*depths} != {*others} or len({*depths}) > 1 for depths, others in zip(down, up[::-1], strict=True)):
        entries = {
            "transformer_layers_per_block": [_each(depths) for depths in down],
            "reverse_transformer_layers_per_block": [_each(depths) for depths in up],
        }
    return entries if has_middle else {**entries, "mid_block_type": "UNetMidBlock2D"}


def _up_depths(section: Section, down: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The transformer blocks of each layer of the way up, which has one layer more in each level."""
    num_layers = len(down[0]) + 1
    counts = [
        section.count(f"output_blocks.{number}.1.transformer_blocks.") for number in range(num_layers * len(down))
    ]
    return [tuple(counts[start : start + num_layers]) for start in range(0, len(counts), num_layers)]


def _stated(depths: tuple[int, ...]) -> int:
    return max(1, depths[0])  # 1 is what configurations say of a level without attention


def _each(depths: tuple[int, ...]) -> int | list[int]:
    return list(depths) if any(depths) else 1


def _size_entries(section: Section) -> dict[str, Any]:
    """The embedding of sizes, crops and the pooled text."""
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": _SIZE_EMBEDDING_WIDTH,
        "projection_class_embeddings_input_dim": section.shape("label_emb.0.0.weight", num_dims=2)[1],
    }


def _levels(section: Section) -> list[_Level]:
    levels: list[_Level] = []
    channels = 0
    depths: list[int] = []
    for number in range(1, section.count("input_blocks.")):
        block = f"input_blocks.{number}"
        if f"{block}.0.op.weight" in section.tensors:  # a downsampler ends the level
            levels.append(_Level(channels, tuple(depths)))
            depths = []
            continue
        channels = section.shape(f"{block}.0.out_layers.3.weight", num_dims=4)[0]
        depths.append(section.count(f"{block}.1.transformer_blocks."))
    return [*levels, _Level(channels, tuple(depths))]


def _first_attention(levels: list[_Level]) -> int:
    number = 1
    for level in levels:
        if level.attends:
            break
        number += level.num_layers + 1
    return number


def _unknown(section: Section, what: str) -> UserError:
    return UserError(
        f"{section.source}: the {section.part} is not one of a known family ({what})",
        "give a model of a known family, not of a variant",
    )
