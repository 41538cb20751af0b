"""A model's parts -> the tensors of a single file in the Stability (LDM) layout, by the same tables as reading."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from library.cli.errors import UserError
from library.models.layouts import ldm_text, ldm_unet, ldm_vae
from library.models.layouts.ldm_keys import rename_key
from library.models.layouts.parts import ModelParts
from library.models.weights.weight_writing import StoredTensor, stored

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel

_GROUPED_LEVELS = {"down_blocks", "up_blocks", "mid_block"}  # of Diffusers' names; none is left in the layout's


def single_file_tensors(parts: ModelParts, *, is_v2: bool, dtype: torch.dtype) -> dict[str, StoredTensor]:
    """The tensors of a single file under their keys. Raises `UserError` for layers that the layout has no name for."""
    text = text_tensors_v2(parts, dtype) if is_v2 else text_tensors_v1(parts, dtype)
    return {**unet_tensors(parts.unet, is_v2=is_v2, dtype=dtype), **vae_tensors(parts.vae, dtype), **text}


def unet_tensors(unet: UNet2DConditionModel, *, is_v2: bool, dtype: torch.dtype) -> dict[str, StoredTensor]:
    """The U-Net's tensors. SD 2.x files hold linear projections around attention, where Diffusers may have 1x1
    convolutions."""
    modules = ldm_unet.module_names(unet.config)
    tensors = {}
    for name, tensor in unet.state_dict().items():
        shape = tuple(tensor.shape)
        if is_v2 and len(shape) == 4 and name.endswith(("proj_in.weight", "proj_out.weight")):
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


def _key(name: str, modules: Mapping[str, str], prefix: str, part: str) -> str:
    key = rename_key(name, modules)
    if _GROUPED_LEVELS.intersection(key.split(".")):
        raise UserError(
            f"the {part} has a layer that single files have no name for: {name}",
            "save it as a Diffusers folder: diffusers or diffusers_safetensors",
        )
    return prefix + key


def text_tensors_v1(parts: ModelParts, dtype: torch.dtype) -> dict[str, StoredTensor]:
    """The tensors of an SD 1.x text encoder."""
    prefix = ldm_text.PREFIX_V1 + ldm_text.OPTIONAL_LEVEL
    text = text_state(parts.text_encoder)
    return {
        prefix + tensor_slice.key: stored(text[name], dtype)
        for name, tensor_slice in ldm_text.tensor_slices_v1(text).items()
    }


def text_tensors_v2(parts: ModelParts, dtype: torch.dtype) -> dict[str, StoredTensor]:
    """The tensors of an SD 2.x text encoder, with the unused ones that files have: a last layer, projection and scale.

    They come from the file that the model was read from, else they are placeholders: a copy of the layer before, the
    identity as projection, and 1.
    """
    text = text_state(parts.text_encoder)
    stacks: dict[str, dict[int, torch.Tensor]] = {}
    for name, tensor_slice in ldm_text.tensor_slices_v2(text).items():
        stacks.setdefault(tensor_slice.key, {})[tensor_slice.third or 0] = text[name]
    tensors = {}
    for key, thirds in stacks.items():
        pieces = tuple(thirds[index] for index in sorted(thirds))
        shape = (sum(len(piece) for piece in pieces), *pieces[0].shape[1:])
        tensors[key] = StoredTensor(pieces, shape, dtype)
    num_layers = parts.text_encoder.config.num_hidden_layers
    last, unused_layer = f"{ldm_text.BLOCKS}{num_layers - 1}.", f"{ldm_text.BLOCKS}{num_layers}."
    for key in [key for key in tensors if key.startswith(last)]:
        tensors[unused_layer + key.removeprefix(last)] = tensors[key]
    width = parts.text_encoder.config.hidden_size
    device = next(iter(text.values())).device  # "meta" where only names and shapes are asked for
    tensors["text_projection"] = stored(torch.eye(width, device=device), dtype)
    tensors["logit_scale"] = stored(torch.tensor(1, device=device), dtype)
    tensors.update({key: stored(tensor, dtype) for key, tensor in parts.unused_tensors.items()})
    return {ldm_text.PREFIX_V2 + key: tensor for key, tensor in tensors.items()}


def text_state(encoder: Any) -> dict[str, torch.Tensor]:
    """The text encoder's tensors without `position_ids`, which older versions of transformers keep as weights."""
    state = encoder.text_model.state_dict()
    return {name: tensor for name, tensor in state.items() if not name.endswith("position_ids")}
