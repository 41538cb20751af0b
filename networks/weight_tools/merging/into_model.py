"""Merges LoRAs, and other adapters, into the weights of a model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from library.cli.errors import UserError
from library.cli.jobs.outcome import Outcome
from library.models.devices import DTYPES, choose_device
from library.models.layouts.formats import format_by_name
from library.models.options import MetadataOptions
from library.models.reading.opened import OpenedModel
from library.models.registry import inspect_model
from library.models.weights.lazy_tensors import LazyTensors, UnreadTensor, leave_unread
from networks.adapters.adapter_layer import AdapterLayer
from networks.weight_tools.adapter_kinds import network_of_file
from networks.weight_tools.opened_models import open_model, unread_weights
from networks.weight_tools.options.merging import MODEL_FLAG, MergeOptions

logger = logging.getLogger(__name__)


def merge_into_model(options: MergeOptions, outcome: Outcome) -> None:
    """Writes the model with the updates of the LoRAs added to its weights. Raises `UserError` for layers it lacks.

    One tensor of the model is in memory at a time, unless a pickle is read or written.
    """
    device = choose_device(options.device)
    model = open_model(options.model_options, MODEL_FLAG)
    networks = [network_of_file(model, path, ratio) for path, ratio in options.files]
    adapted: dict[nn.Module, list[AdapterLayer]] = {}
    for (path, _), network, weights in zip(options.files, networks, options.block_weights, strict=True):
        layers = list(network.layers())
        factors = {} if weights is None else weights.factors([layer.name for layer in layers], path)
        for layer in layers:
            layer.multiplier *= factors.get(layer.name, 1.0)
            adapted.setdefault(layer.base, []).append(layer)
    for base, weight in unread_weights(model, adapted).items():
        merge = partial(_merged, base, adapted[base], weight, options.precision, device)
        leave_unread(base, LazyTensors({"weight": merge}))
    _save(model, options)
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


def _save(model: OpenedModel, options: MergeOptions) -> None:
    target, metadata = options.target, {}
    if not options.no_metadata:
        sources = [
            Path(str(options.sd_model)).stem,
            *(f"{Path(path).stem} x {ratio:g}" for path, ratio in options.files),
        ]
        texts = MetadataOptions(metadata_merged_from=", ".join(sources))
        metadata = model.metadata(texts, inspect_model(str(options.sd_model)).metadata, target.stem)
    dtype = DTYPES[options.saved_precision]
    try:
        model.save(target, format=format_by_name(target), dtype=dtype, metadata=metadata)
    except OSError as error:
        raise UserError(
            f"--save_to {target} cannot be written: {error.strerror or error}",
            "check the path and the space left on the disk",
        ) from error
    logger.info("saved %s in %s", target, options.saved_precision)
