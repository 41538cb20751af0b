"""Merges several LoRAs into one of a given rank, by singular value decomposition of the sum of their updates."""

from __future__ import annotations

import torch

from library.cli.jobs.outcome import Outcome
from library.models.devices import DTYPES, choose_device
from networks.weight_tools.factors import product_factors
from networks.weight_tools.layer_names import with_family_names
from networks.weight_tools.lora_file import LayerWeights, open_lora, save_lora, shaped
from networks.weight_tools.merging.adapters import check_shapes, concatenated, layer_factors
from networks.weight_tools.merging.metadata import merged_metadata
from networks.weight_tools.options.merging import SVDMergeOptions


def svd_merge_files(options: SVDMergeOptions, outcome: Outcome) -> None:
    """Writes the best approximation of the weighted sum of the LoRAs by the new rank; alpha is the rank.

    Raises `UserError` for layers that do not fit, and for those with NaN.
    """
    files = [(with_family_names(open_lora(path)), ratio) for path, ratio in options.files]
    factors = layer_factors(files, options)
    names = list(dict.fromkeys(name for file, _ in files for name in file.ranks))
    for name in names:
        check_shapes(name, [file for file, _ in files])
    device, merged = choose_device(options.device), {}
    for name in names:
        found = [
            (file.finite_layer(name), by_layer[name])
            for (file, _), by_layer in zip(files, factors, strict=True)
            if name in by_layer
        ]
        merged[name] = _best(concatenated(found), options, device)
        outcome.done += 1
    metadata = merged_metadata(files, options.target, no_metadata=options.no_metadata)
    save_lora(str(options.target), merged, DTYPES[options.saved_precision], metadata)


def _best(layer: LayerWeights, options: SVDMergeOptions, device: torch.device) -> LayerWeights:
    """The layer at the new rank, or at its own where that is smaller; alpha is the rank."""
    decomposed = product_factors(layer.up.flatten(1).to(device) * layer.scale, layer.down.flatten(1).to(device))
    rank = min(options.rank_of(layer.is_spatial), len(decomposed.values))
    rounding = DTYPES[options.precision]
    up, down = (half.to("cpu", rounding) for half in decomposed.halves(rank))
    return shaped(layer, down, up, float(rank))
