"""A model's parts -> the tensors of a single file in the Stability (LDM) layout, by the same tables as reading."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from library.cli.errors import UserError
from library.models.layouts import ldm_text, ldm_unet, ldm_vae
from library.models.layouts.ldm_keys import rename_key
from library.models.layouts.model_layout import ModelLayout, TextEncoderLayout
from library.models.layouts.parts import ModelParts
from library.models.text.text_encoder import TextEncoder
from library.models.weights.weight_writing import StoredTensor, stored

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel

_GROUPED_LEVELS = {"down_blocks", "up_blocks", "mid_block"}  # of Diffusers' names; none is left in the layout's


def single_file_tensors(
    parts: ModelParts, layout: ModelLayout, scheduler: Mapping[str, Any], dtype: torch.dtype
) -> dict[str, StoredTensor]:
    """The tensors of a single file under their keys. Raises `UserError` for layers that the layout has no name for.

    `scheduler`: entries of its configuration; some layouts have keys that say them.
    """
    tensors = {**unet_tensors(parts.unet, layout, dtype), **vae_tensors(parts.vae, dtype)}
    for text in layout.text_encoders:
        tensors.update(text_tensors(parts.text_encoders[text.name], text, dtype))
    tensors.update({key: stored(tensor, dtype) for key, tensor in parts.unused_tensors.items()})
    for key, (entry, value) in layout.marks.items():
        if scheduler.get(entry) == value:
            tensors[key] = stored(torch.empty(0), dtype)
    return tensors


def unet_tensors(unet: UNet2DConditionModel, layout: ModelLayout, dtype: torch.dtype) -> dict[str, StoredTensor]:
    """The U-Net's tensors; some layouts have linear projections around attention, where Diffusers may have 1x1
    convolutions."""
    modules = ldm_unet.module_names(unet.config)
    tensors = {}
    for name, tensor in unet.state_dict().items():
        shape = tuple(tensor.shape)
        if layout.has_linear_projections and len(shape) == 4 and name.endswith(("proj_in.weight", "proj_out.weight")):
            shape = shape[:2]
        tensors[_key(name, modules, ldm_unet.PREFIX, ldm_unet.PART)] = stored(tensor, dtype, shape)
    return tensors


def vae_tensors(vae: AutoencoderKL, dtype: torch.dtype) -> dict[str, StoredTensor]:
    """The VAE's tensors; the layout has 1x1 convolutions in its attention."""
    modules = ldm_vae.module_names(vae.config)
    tensors = {}
    for name, tensor in vae.state_dict().items():
        shape = (*tensor.shape, 1, 1) if tensor.dim() == 2 else tuple(tensor.shape)
        tensors[_key(name, modules, ldm_vae.PREFIX, ldm_vae.PART)] = stored(tensor, dtype, shape)
    return tensors


def unnamed_layer_problem(parts: ModelParts) -> UserError | None:
    """The error for a U-Net or a VAE with a layer that the layout has no name for; reads no weights."""
    try:
        for module, layout in ((parts.unet, ldm_unet), (parts.vae, ldm_vae)):
            modules = layout.module_names(module.config)
            for name in module.state_dict():
                _key(name, modules, layout.PREFIX, layout.PART)
    except UserError as error:
        return error
    return None


def _key(name: str, modules: Mapping[str, str], prefix: str, part: str) -> str:
    key = rename_key(name, modules)
    if _GROUPED_LEVELS.intersection(key.split(".")):
        raise UserError(
            f"the {part} has a layer that single files have no name for: {name}",
            "save it as a Diffusers folder: diffusers or diffusers_safetensors",
        )
    return prefix + key


def text_tensors(encoder: TextEncoder, text: TextEncoderLayout, dtype: torch.dtype) -> dict[str, StoredTensor]:
    """The tensors of a text encoder."""
    prefix = text.prefix if text.is_open_clip else text.prefix + ldm_text.LEVEL
    state = text_state(encoder)
    stacks: dict[str, dict[int, torch.Tensor]] = {}
    for name, tensor_slice in ldm_text.tensor_slices(state, text).items():
        tensor = state[name].T if tensor_slice.is_transposed else state[name]
        stacks.setdefault(tensor_slice.key, {})[tensor_slice.third or 0] = tensor
    tensors = {}
    for key, thirds in stacks.items():
        pieces = tuple(thirds[index] for index in sorted(thirds))
        shape = (sum(len(piece) for piece in pieces), *pieces[0].shape[1:])
        tensors[key] = StoredTensor(pieces, shape, dtype)
    device = next(iter(state.values())).device  # "meta" where only names and shapes are asked for
    if text.stores_position_ids:
        positions = torch.arange(encoder.config.max_position_embeddings, device=device).unsqueeze(0)
        tensors[ldm_text.POSITION_IDS] = stored(positions, dtype)
    if text.is_open_clip:
        tensors.update(_placeholders(tensors, encoder.config, text, device, dtype))
    return {prefix + key: tensor for key, tensor in tensors.items()}


def _placeholders(
    tensors: Mapping[str, StoredTensor],
    config: Any,
    text: TextEncoderLayout,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, StoredTensor]:
    """The tensors that OpenCLIP's files have and nothing reads: a last layer, projection and scale.

    A model that was read from a file has its own, which replace these: a copy of the layer before, the identity as
    projection, and 1.
    """
    placeholders = {}
    if text.skips_last_layer:
        last, unused = (f"{ldm_text.BLOCKS}{config.num_hidden_layers - back}." for back in (1, 0))
        copies = {key: tensor for key, tensor in tensors.items() if key.startswith(last)}
        placeholders = {unused + key.removeprefix(last): tensor for key, tensor in copies.items()}
    if not text.has_projection:
        placeholders[ldm_text.PROJECTION] = stored(torch.eye(config.hidden_size, device=device), dtype)
    placeholders[ldm_text.LOGIT_SCALE] = stored(torch.tensor(1, device=device), dtype)
    return placeholders


def text_state(encoder: TextEncoder) -> dict[str, torch.Tensor]:
    """The text encoder's tensors without `position_ids`, which older versions of transformers keep as weights.

    Their names lack the level `text_model`.
    """
    state = {name.removeprefix(ldm_text.LEVEL): tensor for name, tensor in encoder.state_dict().items()}
    return {name: tensor for name, tensor in state.items() if not name.endswith("position_ids")}
