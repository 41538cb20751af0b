"""Resizes a LoRA to another rank by singular value decomposition."""

from __future__ import annotations

import logging

from library.cli.errors import plural
from library.cli.jobs.outcome import Outcome
from library.models.devices import DTYPES, choose_device
from networks.weight_tools.factors import Factors, dynamic_rank, product_factors
from networks.weight_tools.lora_file import LayerWeights, LoRAFile, open_lora, save_lora, shaped
from networks.weight_tools.options.files import ResizeOptions

logger = logging.getLogger(__name__)


def resize_file(options: ResizeOptions, outcome: Outcome) -> None:
    """Writes the LoRA with the best approximation of each update by the new rank; scales (alpha / rank) are kept."""
    file = open_lora(options.source)
    device = choose_device(options.device)
    resized = {}
    for name in file.ranks:
        layer = file.finite_layer(name)
        factors = product_factors(layer.up.flatten(1).to(device), layer.down.flatten(1).to(device))
        resized[name], kept = resize_layer(layer, factors, options)
        outcome.done += 1
        if options.verbose:
            logger.info("%s: rank %d of %d, %.1f %% of the norm", name, resized[name].rank, layer.rank, 100 * kept)
    smaller = sum(layer.rank < options.rank_of(layer.is_spatial) for layer in resized.values())
    if smaller and options.dynamic_method is None:
        logger.warning("%s a smaller rank already, which is kept", plural(smaller, "layer has", "layers have"))
    dtype = DTYPES[options.save_precision] if options.save_precision else file.dtype
    save_lora(options.target, resized, dtype, {**file.metadata, **_comment(file, options)})


def resize_layer(layer: LayerWeights, factors: Factors, options: ResizeOptions) -> tuple[LayerWeights, float]:
    """The layer at its new rank, and the share of the Frobenius norm that this keeps."""
    most = min(options.rank_of(layer.is_spatial), layer.rank, len(factors.values))
    if options.dynamic_method is None:
        rank = most
    else:
        rank = dynamic_rank(factors.values, options.dynamic_method, options.dynamic_param or 0.0, most)
    up, down = factors.halves(rank)
    norms = factors.values.double().square().cumsum(0).sqrt()
    kept = float(norms[rank - 1] / norms[-1]) if float(norms[-1]) else 1.0
    return shaped(layer, down, up, layer.scale * rank), kept


def _comment(file: LoRAFile, options: ResizeOptions) -> dict[str, str]:
    """The entry that tells what was done to the training's LoRA."""
    done = f"resized to rank {options.new_rank}"
    if options.dynamic_method is not None:
        done = f"resized by {options.dynamic_method} {options.dynamic_param:g} to ranks up to {options.new_rank}"
    earlier = file.metadata.get("ss_training_comment", "")
    return {"ss_training_comment": f"{done}; {earlier}" if earlier not in ("", "None") else done}
