"""The text encoders of the Stability (LDM) layout: OpenAI's CLIP in SD 1.x files, OpenCLIP's in SD 2.x files.

"Our" names are those of CLIP's text transformer in `transformers`, without the level `text_model`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from library.models.layouts.ldm_keys import Section, TensorSlice, rename_key
from library.models.weights.model_kinds import TEXT_PREFIX_V1, TEXT_PREFIX_V2

PREFIX_V1 = TEXT_PREFIX_V1
PREFIX_V2 = TEXT_PREFIX_V2
PART = "text encoder"
OPTIONAL_LEVEL = "text_model."  # present in some SD 1.x files
NOT_USED_V1 = ("embeddings.position_ids", "text_projection", "logit_scale")
NOT_USED_V2 = ("text_projection", "logit_scale", "attn_mask")  # of CLIP's contrastive training
BLOCKS = "transformer.resblocks."

_HEAD_WIDTH = 64
_WIDTH_SD2, _LAYERS_SD2 = 1024, 23  # of OpenCLIP's ViT-H, without its last layer

_OPEN_CLIP_ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_STACKED = ("q_proj", "k_proj", "v_proj")  # concatenated in OpenCLIP's in_proj


def infer_config_v1(section: Section) -> dict[str, Any]:
    """Entries of a CLIP text config.json for the text encoder of an SD 1.x file. Raises `UserError`."""
    return _config(
        token_embedding=section.shape("embeddings.token_embedding.weight", num_dims=2),
        num_positions=section.shape("embeddings.position_embedding.weight", num_dims=2)[0],
        intermediate_size=section.shape("encoder.layers.0.mlp.fc1.weight", num_dims=2)[0],
        num_layers=section.count("encoder.layers."),
        activation="quick_gelu",
    )


def infer_config_v2(section: Section) -> dict[str, Any]:
    """The same for an SD 2.x file.

    SD 2.x conditions on the penultimate layer, so the last is not counted and not read. Some programs omit it from
    their files; that is detected at the known full size.
    """
    token_embedding = section.shape("token_embedding.weight", num_dims=2)
    num_layers = section.count(BLOCKS) - 1
    if token_embedding[1] == _WIDTH_SD2 and num_layers == _LAYERS_SD2 - 1:
        num_layers = _LAYERS_SD2
    return _config(
        token_embedding=token_embedding,
        num_positions=section.shape("positional_embedding", num_dims=2)[0],
        intermediate_size=section.shape(f"{BLOCKS}0.mlp.c_fc.weight", num_dims=2)[0],
        num_layers=num_layers,
        activation="gelu",
    )


def tensor_slices_v1(names: Iterable[str]) -> dict[str, TensorSlice]:
    """Where each of our tensors is in an SD 1.x file."""
    return {name: TensorSlice(name) for name in names}


def tensor_slices_v2(names: Iterable[str]) -> dict[str, TensorSlice]:
    """Where each of our tensors is in an SD 2.x file; queries, keys and values are one tensor there."""
    return {name: _tensor_slice_v2(name) for name in names}


def _tensor_slice_v2(name: str) -> TensorSlice:
    if name in _OPEN_CLIP_ENDS:
        return TensorSlice(_OPEN_CLIP_ENDS[name])
    _encoder, _layers, index, rest = name.split(".", 3)
    *_, module, kind = rest.split(".")
    if module in _STACKED:
        return TensorSlice(f"{BLOCKS}{index}.attn.in_proj_{kind}", _STACKED.index(module))
    return TensorSlice(f"{BLOCKS}{index}.{rename_key(rest, _LAYER)}")


def _config(
    *, token_embedding: tuple[int, ...], num_positions: int, intermediate_size: int, num_layers: int, activation: str
) -> dict[str, Any]:
    vocab_size, width = token_embedding
    return {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": max(1, width // _HEAD_WIDTH),
        "max_position_embeddings": num_positions,
        "hidden_act": activation,
        "layer_norm_eps": 1e-5,
    }
