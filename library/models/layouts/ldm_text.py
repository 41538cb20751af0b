"""The text encoders of the Stability (LDM) layout: CLIP's under the names of `transformers`, or OpenCLIP's own.

"Our" names are those of CLIP's text transformer in `transformers`, without the level `text_model`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from library.models.layouts.ldm_keys import Section, TensorSlice, rename_key, section_of
from library.models.layouts.model_layout import TextEncoderLayout

LEVEL = "text_model."  # in the names of `transformers`; some SD 1.x files lack it
BLOCKS = "transformer.resblocks."
PROJECTION, POSITION_IDS, LOGIT_SCALE = "text_projection", "embeddings.position_ids", "logit_scale"

_NOT_USED = (POSITION_IDS, PROJECTION, LOGIT_SCALE, "attn_mask")  # some are of CLIP's contrastive training
_OUR_PROJECTION = "text_projection.weight"  # (projection, width), the transpose of OpenCLIP's; some files have it so

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


def section_in_file(tensors: Mapping[str, torch.Tensor], text: TextEncoderLayout, source: str) -> Section:
    """The text encoder's tensors in a single file, without those that are not used."""
    prefix = text.prefix
    if not text.is_open_clip and any(key.startswith(prefix + LEVEL) for key in tensors):
        prefix += LEVEL
    ignored = tuple(name for name in _NOT_USED if not (name == PROJECTION and text.has_projection))
    return section_of(tensors, prefix, source=source, part=text.title, ignored=ignored)


def unused_names(text: TextEncoderLayout, num_layers: int) -> tuple[str, ...]:
    """Beginnings of the names that OpenCLIP's files hold and nothing reads, for an encoder of `num_layers`."""
    if not text.is_open_clip:
        return ()
    layer = (f"{BLOCKS}{num_layers}.",) if text.skips_last_layer else ()
    return (*layer, LOGIT_SCALE) if text.has_projection else (*layer, PROJECTION, LOGIT_SCALE)


def infer_config(section: Section, text: TextEncoderLayout) -> dict[str, Any]:
    """Entries of a CLIP text config.json for a text encoder of a single file. Raises `UserError`."""
    return _infer_open_clip_config(section, text) if text.is_open_clip else _infer_clip_config(section)


def _infer_clip_config(section: Section) -> dict[str, Any]:
    return _config(
        token_embedding=section.shape("embeddings.token_embedding.weight", num_dims=2),
        num_positions=section.shape("embeddings.position_embedding.weight", num_dims=2)[0],
        intermediate_size=section.shape("encoder.layers.0.mlp.fc1.weight", num_dims=2)[0],
        num_layers=section.count("encoder.layers."),
        activation="quick_gelu",
    )


def _infer_open_clip_config(section: Section, text: TextEncoderLayout) -> dict[str, Any]:
    """The same for OpenCLIP's names.

    SD 2.x conditions on the penultimate layer, so the last is not counted and not read. Some programs omit it from
    their files; that is detected at the known full size.
    """
    token_embedding = section.shape("token_embedding.weight", num_dims=2)
    num_layers = section.count(BLOCKS)
    if text.skips_last_layer and (token_embedding[1], num_layers) != (_WIDTH_SD2, _LAYERS_SD2):
        num_layers -= 1
    name = projection_name(section)
    dimension = 1 if name == PROJECTION else 0
    projection = {"projection_dim": section.shape(name, num_dims=2)[dimension]} if text.has_projection else {}
    return projection | _config(
        token_embedding=token_embedding,
        num_positions=section.shape("positional_embedding", num_dims=2)[0],
        intermediate_size=section.shape(f"{BLOCKS}0.mlp.c_fc.weight", num_dims=2)[0],
        num_layers=num_layers,
        activation="gelu",
    )


def projection_name(section: Section) -> str:
    """The name of the projection: OpenCLIP's, or that of a linear layer, whose weight is the transpose."""
    is_linear = PROJECTION not in section.tensors and _OUR_PROJECTION in section.tensors
    return _OUR_PROJECTION if is_linear else PROJECTION


def tensor_slices(
    names: Iterable[str], text: TextEncoderLayout, projection: str = PROJECTION
) -> dict[str, TensorSlice]:
    """Where each of our tensors is in a single file; OpenCLIP has queries, keys and values as one tensor.

    `projection`: the name that the file has for it.
    """
    return {name: _open_clip_slice(name, projection) if text.is_open_clip else TensorSlice(name) for name in names}


def _open_clip_slice(name: str, projection: str) -> TensorSlice:
    if name == _OUR_PROJECTION:
        return TensorSlice(projection, is_transposed=projection == PROJECTION)  # (width, projection) there
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
