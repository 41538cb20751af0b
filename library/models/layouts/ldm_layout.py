"""Reads single files in the Stability (LDM) layout: U-Net, VAE and text encoder in one file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL
from torch import nn

from library.cli.errors import UserError, raise_together
from library.models.layouts import ldm_text, ldm_unet, ldm_vae
from library.models.layouts.config_metadata import stated_config
from library.models.layouts.ldm_keys import Section, TensorSlice, rename_key, section_of
from library.models.layouts.parts import ModelParts, empty_text_encoder, empty_unet, empty_vae
from library.models.layouts.stored_configs import say_misfit
from library.models.text.text_encoder import TextEncoder
from library.models.weights.checkpoint_files import WeightFile
from library.models.weights.lazy_tensors import LazyTensors, renamed
from library.models.weights.model_kinds import is_v2, usual_keys
from library.models.weights.module_weights import fill_module, lacking_keys_error, surplus_keys_error

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def unwrapped(file: WeightFile) -> WeightFile:
    """The file with the usual keys, where the program that saved it added or dropped a prefix."""
    names = usual_keys(file.tensors)
    return file if list(names) == list(file.tensors) else replace(file, tensors=renamed(file.tensors, names))


def load_single_file(file: WeightFile, vae: AutoencoderKL | None = None) -> ModelParts:
    """Builds the parts of the model in a file, float32, frozen, in eval mode; sizes come from the shapes of tensors.

    `vae` takes the place of the file's own, which is then not read and may be missing. Other keys (EMA weights,
    optimizer states, schedules) are ignored. Raises one `UserError` for all parts that names the file and what is
    missing or has the wrong shape.
    """
    parts: list[Any] = []
    errors: list[UserError] = []
    load_vae_part = _load_vae if vae is None else lambda file: vae
    for load in (_load_unet, load_vae_part, _load_text_encoder_v2 if is_v2(file.tensors) else _load_text_encoder_v1):
        try:
            parts.append(load(file))
        except UserError as error:
            errors.append(error)
    raise_together(errors)
    unet, chosen_vae, encoder = parts
    return ModelParts(unet, chosen_vae, encoder, _unused_tensors_v2(file, encoder) if is_v2(file.tensors) else {})


def _load_unet(file: WeightFile) -> nn.Module:
    section = section_of(file.tensors, ldm_unet.PREFIX, source=str(file.path), part=ldm_unet.PART)
    inferred = ldm_unet.infer_config(section, is_v2=is_v2(file.tensors))
    modules = ldm_unet.module_names(inferred)

    def build(config: Mapping[str, Any]) -> nn.Module:
        unet = empty_unet(config, section.source)
        return _fill(unet, section, {name: TensorSlice(rename_key(name, modules)) for name in unet.state_dict()})

    return _build_as_stated(build, file.metadata, "unet", inferred, section.source)


def _build_as_stated(
    build: Callable[[Mapping[str, Any]], ModuleT],
    metadata: Mapping[str, str],
    part: str,
    inferred: Mapping[str, Any],
    source: str,
) -> ModuleT:
    """Builds a part as the file's metadata says, or, where that does not fit, from the shapes of its tensors alone."""
    try:
        return build({**inferred, **stated_config(metadata, part, inferred, source)})
    except UserError as error:
        module = build(inferred)  # raises where the metadata is not the cause
        say_misfit(source, part, error)
        return module


def _load_vae(file: WeightFile) -> AutoencoderKL:
    section = section_of(
        file.tensors, ldm_vae.PREFIX, source=str(file.path), part=ldm_vae.PART, ignored=ldm_vae.TRAINING_ONLY
    )
    return load_vae(section, file.metadata)


def load_vae(section: Section, metadata: Mapping[str, str]) -> AutoencoderKL:
    """Builds a VAE from its section of a file with `metadata`. Raises `UserError`."""
    inferred = ldm_vae.infer_config(section)
    modules = ldm_vae.module_names(inferred)

    def build(config: Mapping[str, Any]) -> AutoencoderKL:
        vae = empty_vae(config, section.source)
        return _fill(vae, section, {name: TensorSlice(rename_key(name, modules)) for name in vae.state_dict()})

    return _build_as_stated(build, metadata, "vae", inferred, section.source)


def load_diffusers_vae(section: Section) -> AutoencoderKL:
    """Builds a VAE from a file with Diffusers' names and without a config.json. Raises `UserError`."""
    vae = empty_vae(ldm_vae.infer_diffusers_config(section), section.source)
    return _fill(vae, section, {name: TensorSlice(name) for name in vae.state_dict()})


def _load_text_encoder_v1(file: WeightFile) -> nn.Module:
    optional = ldm_text.PREFIX_V1 + ldm_text.OPTIONAL_LEVEL
    prefix = optional if any(key.startswith(optional) for key in file.tensors) else ldm_text.PREFIX_V1
    section = section_of(file.tensors, prefix, source=str(file.path), part=ldm_text.PART, ignored=ldm_text.NOT_USED_V1)

    def build(config: Mapping[str, Any]) -> TextEncoder:
        encoder = empty_text_encoder(config, section.source)
        _fill(encoder.text_model, section, ldm_text.tensor_slices_v1(encoder.text_model.state_dict()))
        return encoder

    inferred = ldm_text.infer_config_v1(section)
    return _build_as_stated(build, file.metadata, "text_encoder", inferred, section.source)


def _load_text_encoder_v2(file: WeightFile) -> nn.Module:
    section = section_of(
        file.tensors, ldm_text.PREFIX_V2, source=str(file.path), part=ldm_text.PART, ignored=ldm_text.NOT_USED_V2
    )
    inferred = ldm_text.infer_config_v2(section)
    unused_layer = f"{ldm_text.BLOCKS}{inferred['num_hidden_layers']}."
    kept = renamed(section.tensors, {key: key for key in section.tensors if not key.startswith(unused_layer)})
    used = replace(section, tensors=kept)

    def build(config: Mapping[str, Any]) -> TextEncoder:
        encoder = empty_text_encoder(config, section.source)
        _fill(encoder.text_model, used, ldm_text.tensor_slices_v2(encoder.text_model.state_dict()))
        return encoder

    return _build_as_stated(build, file.metadata, "text_encoder", inferred, section.source)


def _unused_tensors_v2(file: WeightFile, encoder: TextEncoder) -> dict[str, torch.Tensor]:
    """Copies of the tensors of an SD 2.x file that are never used, so that saving can write them again."""
    unused = (f"{ldm_text.BLOCKS}{encoder.config.num_hidden_layers}.", "text_projection", "logit_scale")
    names = [key.removeprefix(ldm_text.PREFIX_V2) for key in file.tensors if key.startswith(ldm_text.PREFIX_V2)]
    return {name: file.tensors[ldm_text.PREFIX_V2 + name].clone() for name in names if name.startswith(unused)}


def _fill(module: ModuleT, section: Section, slices: Mapping[str, TensorSlice]) -> ModuleT:
    """Fills `module` with the tensors of a section; `slices`: the module's tensor names -> where they are."""
    lacking = [
        section.prefix + tensor_slice.key for tensor_slice in slices.values() if tensor_slice.key not in section.tensors
    ]
    if lacking:
        raise lacking_keys_error(section.source, section.part, list(dict.fromkeys(lacking)), len(slices))
    used = {tensor_slice.key for tensor_slice in slices.values()}
    surplus = [section.prefix + key for key in section.tensors if key not in used]
    if surplus:
        raise surplus_keys_error(section.source, section.part, surplus)
    expected = module.state_dict()
    readers = {name: partial(_take, section, tensor_slice, expected[name]) for name, tensor_slice in slices.items()}
    fill_module(module, LazyTensors(readers), source=section.source, part=section.part)
    return module


def _take(section: Section, tensor_slice: TensorSlice, expected: torch.Tensor) -> torch.Tensor:
    return _as_linear(tensor_slice.take(section.tensors), expected)


def _as_linear(tensor: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """The layout has 1x1 convolutions (O, I, 1, 1) where Diffusers has linear layers (O, I), in the VAE's attention."""
    if expected.dim() == 2 and tensor.dim() == 4 and tensor.shape[2:] == (1, 1):
        return tensor[:, :, 0, 0]
    return tensor
