"""Merges LoRAs into the weights of a model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from library.cli.errors import UserError, UserErrors
from library.cli.jobs.outcome import Outcome
from library.models.convert import model_metadata
from library.models.devices import DTYPES, choose_device
from library.models.family import ModelFamily
from library.models.layouts.formats import format_by_name
from library.models.options import MetadataOptions
from library.models.registry import inspect_model, open_family
from library.models.weights.lazy_tensors import LazyTensors, UnreadTensor, leave_unread
from library.models.weights.path_checks import about_flag
from networks.adapters.adapter_layer import AdapterLayer
from networks.lora import create_network_from_weights
from networks.weight_tools.merge_options import MODEL_FLAG, MergeOptions

logger = logging.getLogger(__name__)


def merge_into_model(options: MergeOptions, outcome: Outcome) -> None:
    """Writes the model with the updates of the LoRAs added to its weights. Raises `UserError` for layers it lacks.

    One tensor of the model is in memory at a time, unless a pickle is read or written.
    """
    device = choose_device(options.device)
    family = _load(options)
    roots = family.adapter_roots()
    encoders = roots.text_encoders[0] if len(roots.text_encoders) == 1 else list(roots.text_encoders)
    networks = [
        create_network_from_weights(ratio, path, family.vae, encoders, roots.unet, for_inference=True)[0]
        for path, ratio in options.files
    ]
    adapted: dict[nn.Module, list[AdapterLayer]] = {}
    for network in networks:
        for layer in network.layers():
            adapted.setdefault(layer.base, []).append(layer)
    for root in (roots.unet, *roots.text_encoders):
        weights = root.state_dict()
        for path, base in root.named_modules():
            if base in adapted:
                merge = partial(_merged, base, adapted[base], weights[f"{path}.weight"], options.precision, device)
                leave_unread(base, LazyTensors({"weight": merge}))
    _save(family, options)
    outcome.done += len(options.files)


@torch.no_grad()
def _merged(
    base: nn.Module, layers: Sequence[AdapterLayer], weight: UnreadTensor, precision: str, device: torch.device
) -> torch.Tensor:
    """The weight of a base layer with the updates of its adapter layers; these find it in its place meanwhile."""
    empty = base.weight
    base.weight = nn.Parameter(weight.to("cpu", torch.float32, copy=True), requires_grad=False)
    try:
        for layer in layers:
            layer.merge(DTYPES[precision], device)
        return base.weight.detach()
    finally:
        base.weight = empty


def _load(options: MergeOptions) -> ModelFamily:
    try:
        return open_family(options.model_options)
    except UserErrors as errors:
        raise UserErrors(about_flag(MODEL_FLAG, error) for error in errors.errors) from errors
    except UserError as error:
        raise about_flag(MODEL_FLAG, error) from error


def _save(family: ModelFamily, options: MergeOptions) -> None:
    target, metadata = options.target, {}
    if not options.no_metadata:
        sources = [
            Path(str(options.sd_model)).stem,
            *(f"{Path(path).stem} x {ratio:g}" for path, ratio in options.files),
        ]
        texts = MetadataOptions(metadata_merged_from=", ".join(sources))
        metadata = model_metadata(family, texts, inspect_model(str(options.sd_model)).metadata, target.stem)
    dtype = DTYPES[options.saved_precision]
    try:
        family.save(target, format=format_by_name(target), dtype=dtype, metadata=metadata)
    except OSError as error:
        raise UserError(
            f"--save_to {target} cannot be written: {error.strerror or error}",
            "check the path and the space left on the disk",
        ) from error
    logger.info("saved %s in %s", target, options.saved_precision)
