"""Models for the tools: opened with their weights left in their files, and named as the user gave them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from library.cli.errors import UserError, UserErrors
from library.models.latent_diffusion.layer_names import unet_for_adapters
from library.models.options import ModelOptions
from library.models.reading.opened import OpenedModel
from library.models.registry import read_model
from library.models.weights.lazy_tensors import UnreadTensor
from library.models.weights.path_checks import about_flag


def open_model(options: ModelOptions, flag: str) -> OpenedModel:
    """A model whose weights stay in its files. Raises `UserError` that names the `flag` that it was given with."""
    try:
        return read_model(options)
    except UserErrors as errors:
        raise UserErrors(about_flag(flag, error) for error in errors.errors) from errors
    except UserError as error:
        raise about_flag(flag, error) from error


def text_encoders_of(model: OpenedModel) -> nn.Module | Sequence[nn.Module]:
    """The text encoders as adapter networks take them: one alone, several as a list."""
    encoders = model.text_encoders
    return encoders[0] if len(encoders) == 1 else list(encoders)


def unet_of(model: OpenedModel) -> nn.Module:
    """The U-Net as adapter networks take it, its layers named as adapter files of the family name them."""
    return unet_for_adapters(model.unet, model.detected.layout)


def unread_weights(model: OpenedModel, layers: Iterable[nn.Module]) -> dict[nn.Module, UnreadTensor]:
    """The weights of layers of an opened model."""
    wanted = set(layers)
    weights = {}
    for root in (model.unet, *model.text_encoders):
        state = root.state_dict()
        weights.update({layer: state[f"{path}.weight"] for path, layer in root.named_modules() if layer in wanted})
    return weights


@contextmanager
def placeholder_weights(model: OpenedModel) -> Iterator[None]:
    """Gives the layers of an opened model zeros that take no memory: some adapter layers begin with what they see."""
    layers = [
        layer
        for root in (model.unet, *model.text_encoders)
        for layer in root.modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d))
    ]
    empty = {layer: layer.weight for layer in layers}
    for layer in layers:
        layer.weight = nn.Parameter(torch.zeros(()).expand(layer.weight.shape), requires_grad=False)
    try:
        yield
    finally:
        for layer, weight in empty.items():
            layer.weight = weight
