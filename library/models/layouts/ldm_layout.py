"""Reads single files in the Stability (LDM) layout: U-Net, VAE and text encoders in one file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL
from torch import nn

from library.cli.errors import UserError, first_line, raise_together
from library.models.layouts import ldm_text, ldm_unet, ldm_vae
from library.models.layouts.config_metadata import stated_config
from library.models.layouts.ldm_keys import Section, TensorSlice, rename_key, section_of
from library.models.layouts.model_layout import ModelLayout, TextEncoderLayout
from library.models.layouts.parts import ModelParts, empty_text_encoder, empty_unet, empty_vae
from library.models.layouts.stored_configs import say_misfit
from library.models.text.text_encoder import TextEncoder
from library.models.weights.checkpoint_files import WeightFile
from library.models.weights.lazy_tensors import LazyTensors, renamed
from library.models.weights.model_kinds import usual_keys
from library.models.weights.module_weights import FLOAT32, fill_module, lacking_keys_error, surplus_keys_error

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def unwrapped(file: WeightFile) -> WeightFile:
    """The file with the usual keys, where the program that saved it added or dropped a prefix."""
    names = usual_keys(file.tensors)
    return file if list(names) == list(file.tensors) else replace(file, tensors=renamed(file.tensors, names))


def load_single_file(
    file: WeightFile, layout: ModelLayout, vae: AutoencoderKL | None = None, dtypes: Mapping[str, torch.dtype] = FLOAT32
) -> ModelParts:
    """Builds the parts of the model in a file, frozen, in eval mode; sizes come from the shapes of tensors.

    `dtypes`: of the parts "unet", "vae" and "text_encoder", float32 where not given. `vae` takes the place of the
    file's own, which is then not read and may be missing. Other keys (EMA weights, optimizer states, schedules) are
    ignored. Raises one `UserError` for all parts that names the file and what is missing or has the wrong shape.
    """
    loaders: dict[str, Callable[[], Any]] = {
        "unet": lambda: _load_unet(file, layout, dtypes.get("unet", torch.float32)),
        "vae": lambda: vae or _load_vae(file, layout.scaling_factor, dtypes.get("vae", torch.float32)),
        **{
            text.name: partial(_load_text_encoder, file, text, dtypes.get("text_encoder", torch.float32))
            for text in layout.text_encoders
        },
    }
    parts: dict[str, Any] = {}
    errors: list[UserError] = []
    for name, load in loaders.items():
        try:
            parts[name] = load()
        except UserError as error:
            errors.append(error)
    raise_together(errors)
    encoders = {text.name: parts[text.name] for text in layout.text_encoders}
    return ModelParts(parts["unet"], parts["vae"], encoders, _unused_tensors(file, layout, encoders))


def _load_unet(file: WeightFile, layout: ModelLayout, dtype: torch.dtype) -> nn.Module:
    section = section_of(file.tensors, ldm_unet.PREFIX, source=str(file.path), part=ldm_unet.PART)
    inferred = ldm_unet.infer_config(section, layout)
    modules = ldm_unet.module_names(inferred)

    def build(config: Mapping[str, Any]) -> nn.Module:
        unet = empty_unet(config, section.source)
        return _fill(unet, section, {name: TensorSlice(rename_key(name, modules)) for name in unet.state_dict()}, dtype)

    return _build_as_stated(build, file.metadata, "unet", inferred, section)


def _build_as_stated(
    build: Callable[[Mapping[str, Any]], ModuleT],
    metadata: Mapping[str, str],
    part: str,
    inferred: Mapping[str, Any],
    section: Section,
) -> ModuleT:
    """Builds a part as the file's metadata says, or, where that does not fit, from the shapes of its tensors alone."""
    try:
        return build({**inferred, **stated_config(metadata, part, inferred, section)})
    except UserError as error:
        module = build(inferred)  # raises where the metadata is not the cause
        say_misfit(section.source, section.part, first_line(error))
        return module


def _load_vae(file: WeightFile, scaling_factor: float, dtype: torch.dtype) -> AutoencoderKL:
    section = section_of(
        file.tensors, ldm_vae.PREFIX, source=str(file.path), part=ldm_vae.PART, ignored=ldm_vae.TRAINING_ONLY
    )
    return load_vae(section, file.metadata, scaling_factor, dtype)


def load_vae(section: Section, metadata: Mapping[str, str], scaling_factor: float, dtype: torch.dtype) -> AutoencoderKL:
    """Builds a VAE from its section of a file with `metadata`; `scaling_factor`: where that does not say it.

    Raises `UserError`.
    """
    inferred = ldm_vae.infer_config(section, scaling_factor)
    modules = ldm_vae.module_names(inferred)

    def build(config: Mapping[str, Any]) -> AutoencoderKL:
        vae = empty_vae(config, section.source)
        return _fill(vae, section, {name: TensorSlice(rename_key(name, modules)) for name in vae.state_dict()}, dtype)

    return _build_as_stated(build, metadata, "vae", inferred, section)


def load_diffusers_vae(section: Section, scaling_factor: float, dtype: torch.dtype) -> AutoencoderKL:
    """Builds a VAE from a file with Diffusers' names and without a config.json. Raises `UserError`."""
    vae = empty_vae(ldm_vae.infer_diffusers_config(section, scaling_factor), section.source)
    return _fill(vae, section, {name: TensorSlice(name) for name in vae.state_dict()}, dtype)


def _load_text_encoder(file: WeightFile, text: TextEncoderLayout, dtype: torch.dtype) -> TextEncoder:
    section = ldm_text.section_in_file(file.tensors, text, str(file.path))
    inferred = ldm_text.infer_config(section, text)
    unused = ldm_text.unused_names(text, inferred["num_hidden_layers"])
    kept = renamed(section.tensors, {key: key for key in section.tensors if not key.startswith(unused)})
    used = replace(section, tensors=kept)

    def build(config: Mapping[str, Any]) -> TextEncoder:
        encoder = empty_text_encoder(config, section.source, text)
        names = {name.removeprefix(ldm_text.LEVEL): name for name in encoder.state_dict()}
        slices = ldm_text.tensor_slices(names, text, ldm_text.projection_name(section))
        return _fill(encoder, used, {names[name]: tensor_slice for name, tensor_slice in slices.items()}, dtype)

    return _build_as_stated(build, file.metadata, text.name, inferred, section)


def _unused_tensors(
    file: WeightFile, layout: ModelLayout, encoders: Mapping[str, TextEncoder]
) -> dict[str, torch.Tensor]:
    """Copies of the text encoders' tensors that are never used, so that saving can write them again."""
    unused = tuple(
        text.prefix + name
        for text in layout.text_encoders
        for name in ldm_text.unused_names(text, encoders[text.name].config.num_hidden_layers)
    )
    return {key: file.tensors[key].clone() for key in file.tensors if key.startswith(unused)}


def _fill(module: ModuleT, section: Section, slices: Mapping[str, TensorSlice], dtype: torch.dtype) -> ModuleT:
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
    fill_module(module, LazyTensors(readers), dtype, source=section.source, part=section.part)
    return module


def _take(section: Section, tensor_slice: TensorSlice, expected: torch.Tensor) -> torch.Tensor:
    return _as_linear(tensor_slice.take(section.tensors), expected)


def _as_linear(tensor: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """The layout has 1x1 convolutions (O, I, 1, 1) where Diffusers has linear layers (O, I), in the VAE's attention."""
    if expected.dim() == 2 and tensor.dim() == 4 and tensor.shape[2:] == (1, 1):
        return tensor[:, :, 0, 0]
    return tensor
