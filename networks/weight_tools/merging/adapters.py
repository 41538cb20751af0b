"""Merges several LoRAs into one: by concatenating the ranks of each layer, or by adding up its factors."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch

from library.cli.errors import UserError, plural
from library.cli.jobs.outcome import Outcome
from library.models.devices import DTYPES, choose_device
from networks.weight_tools.layer_names import with_family_names
from networks.weight_tools.lora_file import LayerWeights, LoRAFile, open_lora, save_lora
from networks.weight_tools.merging.metadata import merged_metadata
from networks.weight_tools.options.merging import MergedFiles, MergeOptions

logger = logging.getLogger(__name__)

Weighted = Sequence[tuple[LayerWeights, float]]  # the updates of one layer, each with its ratio


def merge_files(options: MergeOptions, outcome: Outcome) -> None:
    """Writes the LoRA that is the merge of `options.files`. Raises `UserError` for layers that do not fit."""
    files = [(with_family_names(open_lora(path)), ratio) for path, ratio in options.files]
    names = list(dict.fromkeys(name for file, _ in files for name in file.ranks))
    for name in names:
        check_shapes(name, [file for file, _ in files])
        if not options.concat:
            _check_ranks(name, [file for file, _ in files])
    factors = layer_factors(files, options)
    device, generator = choose_device(options.device), torch.Generator().manual_seed(0)
    merged = {}
    for name in names:
        found = [(file.layer(name), of[name]) for (file, _), of in zip(files, factors, strict=True) if name in of]
        layer = _merge_layer(found, options, device)
        merged[name] = shuffled(layer, generator) if options.shuffle else layer
        outcome.done += 1
    num_added = sum(sum(name in file.ranks for file, _ in files) > 1 for name in names)
    if num_added and not options.concat:
        logger.warning(
            "%s that several files have: their factors are added up, which is not the sum of their updates;"
            " --concat gives that exactly, svd_merge_lora.py at a rank of your choice",
            plural(num_added, "layer"),
        )
    metadata = merged_metadata(files, options.target, no_metadata=options.no_metadata)
    save_lora(str(options.target), merged, DTYPES[options.saved_precision], metadata)


def layer_factors(files: Sequence[tuple[LoRAFile, float]], options: MergedFiles) -> list[dict[str, float]]:
    """What each layer of each file is multiplied by: the ratio, times the block's weight. Raises `UserError`."""
    factors = []
    for (file, ratio), weights in zip(files, options.block_weights, strict=True):
        of_blocks = {} if weights is None else weights.factors(list(file.ranks), str(file.path))
        factors.append({name: ratio * of_blocks.get(name, 1.0) for name in file.ranks})
    return factors


def _merge_layer(found: Weighted, options: MergeOptions, device: torch.device) -> LayerWeights:
    moved = [(_on(layer, device), ratio) for layer, ratio in found]
    layer = concatenated(moved) if options.concat or len(moved) == 1 else added(moved)
    rounding = DTYPES[options.precision]
    return LayerWeights(layer.down.to("cpu", rounding), layer.up.to("cpu", rounding), layer.alpha)


def _on(layer: LayerWeights, device: torch.device) -> LayerWeights:
    return LayerWeights(layer.down.to(device, torch.float32), layer.up.to(device, torch.float32), layer.alpha)


def concatenated(found: Weighted) -> LayerWeights:
    """Exactly the weighted sum of the updates: [c1 up1, c2 up2, ...] @ [down1; down2; ...].

    alpha / rank is that of the first, to which the c bring the others.
    """
    scale = _first_scale(found)
    first = found[0][0]
    down = torch.cat([layer.down.reshape(-1, *first.down.shape[1:]) for layer, _ in found])
    ups = [layer.up.flatten(1) * (ratio * layer.scale / scale) for layer, ratio in found]
    up = torch.cat(ups, dim=1)
    return LayerWeights(down, up.reshape(len(up), -1, *first.up.shape[2:]), scale * len(down))


def added(found: Weighted) -> LayerWeights:
    """The sums of the factors, each times its ratio: for equal LoRAs, times the square of the sum of the ratios.

    A difference in alpha is divided between both factors; the sign of a ratio goes into one of them.
    """
    scale = _first_scale(found)
    first = found[0][0]
    down, up = torch.zeros_like(first.down), torch.zeros_like(first.up)
    for layer, ratio in found:
        factor = ratio * math.sqrt(abs(layer.scale) / scale)
        down += factor * math.copysign(1.0, layer.scale) * layer.down.reshape(down.shape)
        up += abs(factor) * layer.up.reshape(up.shape)
    return LayerWeights(down, up, scale * len(down))


def _first_scale(found: Weighted) -> float:
    """alpha / rank of the first layer that has one above 0."""
    return next((layer.scale for layer, _ in found if layer.scale > 0), 1.0)


def shuffled(layer: LayerWeights, generator: torch.Generator) -> LayerWeights:
    """The same update, with its ranks in another order."""
    order = torch.randperm(layer.rank, generator=generator)
    return LayerWeights(layer.down[order], layer.up[:, order], layer.alpha)


def check_shapes(name: str, files: Sequence[LoRAFile]) -> None:
    """Raises `UserError` where files have updates of other shapes for a layer; a Linear equals a 1x1 convolution."""
    shapes = {file.update_shape(name): file for file in files if name in file.ranks}
    if len(shapes) > 1:
        (one, first), (other, second), *_ = shapes.items()
        raise UserError(
            f"{name} has the shape {one} in {first.path} and {other} in {second.path}",
            "LoRAs of one base model alone can be merged: SD 1.x, SD 2.x and SDXL do not fit each other",
        )


def _check_ranks(name: str, files: Sequence[LoRAFile]) -> None:
    ranks = {file.ranks[name].rank: file for file in files if name in file.ranks}
    if len(ranks) > 1:
        (one, first), (other, second), *_ = ranks.items()
        raise UserError(
            f"{name} has the rank {one} in {first.path} and {other} in {second.path}",
            "give --concat, which takes different ranks, or merge them to one rank with svd_merge_lora.py",
        )
