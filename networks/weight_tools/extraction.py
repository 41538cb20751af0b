"""Extracts a LoRA from the difference of two models, by singular value decomposition of each layer's."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path

import torch

from library.cli.errors import UserError
from library.cli.jobs.outcome import Outcome
from library.models.devices import DTYPES, choose_device
from library.models.options import MetadataOptions
from library.models.reading.opened import OpenedModel
from library.models.weights.lazy_tensors import UnreadTensor
from networks.adapters.targets import text_encoder_layers, unet_layers
from networks.weight_tools.factors import matrix_factors
from networks.weight_tools.lora_file import LayerWeights, save_lora
from networks.weight_tools.opened_models import open_model, text_encoders_of, unet_of, unread_weights
from networks.weight_tools.options.extraction import ExtractOptions

logger = logging.getLogger(__name__)

Weights = Mapping[str, UnreadTensor]  # of the target layers, by their names in LoRA files


def extract(options: ExtractOptions, outcome: Outcome) -> None:
    """Writes the LoRA that brings the original model to the tuned one, as near as its rank allows.

    The weights of one layer are in memory at a time. Raises `UserError` for models of different kinds, and for models
    that do not differ.
    """
    device = choose_device(options.device)
    org, tuned = (open_model(model, flag) for flag, model in options.models.items())
    if options.sdxl and not org.version.startswith("sdxl"):
        raise UserError(f"--sdxl was given, but {options.model_org} is {org.version}", "leave out --sdxl")
    before, after = _target_weights(org, options), _target_weights(tuned, options)
    _check_shapes(before, after, options)
    left_out = _equal_text_encoders(before, after, options.min_diff)
    layers = {}
    for name in before:
        if _part(name) not in left_out:
            difference = _difference(before[name], after[name])
            if bool(difference.any()):
                layers[name] = _extract_layer(name, difference.to(device), options)
                outcome.done += 1
    if not layers:
        raise UserError(
            f"{options.model_tuned} has the weights of {options.model_org} in all layers of a LoRA",
            "give a fine-tuned model; with --conv_dim 3x3 convolutions are compared too, --min_diff 0 compares all",
        )
    save_lora(str(options.target), layers, DTYPES[options.save_precision or "float"], _metadata(org, options))


def _target_weights(model: OpenedModel, options: ExtractOptions) -> Weights:
    """The weights of the layers that a LoRA of these options has."""
    targets = [
        *text_encoder_layers(text_encoders_of(model)),
        *unet_layers(unet_of(model), convolutions=options.conv_dim is not None),
    ]
    weights = unread_weights(model, [target.module for target in targets])
    return {target.name: weights[target.module] for target in targets}


def _check_shapes(before: Weights, after: Weights, options: ExtractOptions) -> None:
    for name in {**before, **after}:
        shapes = [tuple(each[name].shape) if name in each else None for each in (before, after)]
        if None in shapes or shapes[0][:2] != shapes[1][:2]:  # type: ignore[index]
            raise UserError(
                f"{name} has the shape {shapes[0] or '(missing)'} in {options.model_org} and"
                f" {shapes[1] or '(missing)'} in {options.model_tuned}",
                "give a model and one that was fine-tuned from it",
            )


def _equal_text_encoders(before: Weights, after: Weights, min_diff: float) -> set[str]:
    """The text encoders none of whose weights differ by more than `min_diff`."""
    largest: dict[str, float] = {}
    for name in before:
        part = _part(name)
        if part != "lora_unet" and largest.get(part, 0.0) <= min_diff:
            difference = float(_difference(before[name], after[name]).abs().max())
            largest[part] = max(largest.get(part, 0.0), difference)
    equal = {part: value for part, value in largest.items() if value <= min_diff}
    for part, value in equal.items():
        logger.info("the text encoder (%s) differs by %g at most, --min_diff leaves it out", part, value)
    return set(equal)


def _part(name: str) -> str:
    """The beginning of a layer's name that stands for its part: lora_unet, lora_te, lora_te1, lora_te2."""
    return "_".join(name.split("_", 2)[:2])


def _difference(before: UnreadTensor, after: UnreadTensor) -> torch.Tensor:
    old = before.to("cpu", torch.float32)
    return after.to("cpu", torch.float32).reshape(old.shape) - old


def _extract_layer(name: str, difference: torch.Tensor, options: ExtractOptions) -> LayerWeights:
    """The layer whose update is the best approximation of the difference, its values clamped as the options say."""
    if not bool(torch.isfinite(difference).all()):
        raise UserError(f"{name} has NaN or infinite values in one of the models", "take an earlier save of it")
    is_spatial = difference.dim() == 4 and tuple(difference.shape[2:]) != (1, 1)
    rank = min(options.conv_dim if is_spatial and options.conv_dim else options.dim, *difference.flatten(1).shape)
    up, down = (half.cpu() for half in matrix_factors(difference.flatten(1)).halves(rank))
    limit = quantile(torch.cat([up.flatten(), down.flatten()]).abs(), options.clamp_quantile)
    up, down = up.clamp(-limit, limit), down.clamp(-limit, limit)
    ones = (1,) * (difference.dim() - 2)
    return LayerWeights(down.reshape(rank, *difference.shape[1:]), up.reshape(len(up), rank, *ones), float(rank))


def quantile(values: torch.Tensor, share: float) -> float:
    """The smallest of the values that at least this share of them does not exceed."""
    return float(values.kthvalue(max(1, math.ceil(share * len(values)))).values)


def _metadata(model: OpenedModel, options: ExtractOptions) -> dict[str, str]:
    base = {"ss_v2": str(model.version.startswith("sd_v2")), "ss_base_model_version": model.version}
    if options.no_metadata:
        return base
    org, tuned = str(options.model_org), str(options.model_tuned)
    specified = model.metadata(MetadataOptions(), {}, options.target.stem)
    return {
        **base,
        **specified,
        "modelspec.architecture": f"{model.architecture}/lora",
        "ss_training_comment": f"extracted from {Path(tuned).name}, tuned from {Path(org).name}",
    }
