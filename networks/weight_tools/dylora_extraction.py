"""Makes a LoRA of each rank of a DyLoRA."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping

from library.cli.errors import UserError
from library.cli.jobs.outcome import Outcome
from networks.weight_tools.lora_file import LayerWeights, LoRAFile, network_args, open_lora, save_lora
from networks.weight_tools.options.dylora import DyLoRAOptions

logger = logging.getLogger(__name__)

_MODULE = "networks.dylora"


def extract_ranks(options: DyLoRAOptions, outcome: Outcome) -> None:
    """Writes a LoRA for each multiple of the unit up to the rank. Raises `UserError` where it is not known or fits not.

    The first b ranks of a DyLoRA are a LoRA of rank b with its alpha (2210.07558). A layer of a smaller rank is whole.
    """
    file = open_lora(options.source)
    unit, largest = _unit(file, options), max(layer.rank for layer in file.ranks.values())
    for name, layer in file.ranks.items():
        if layer.rank % unit:
            raise UserError(
                f"{options.source}: {name} has the rank {layer.rank}, which is no multiple of {unit}",
                "give the --unit that it was trained with",
            )
    metadata = _metadata(file.metadata)
    for rank in range(unit, largest + 1, unit):
        layers = {name: _first_ranks(layer, rank) for name, layer in file.layers()}
        save_lora(options.target(rank), layers, file.dtype, metadata)
        logger.info("saved %s", options.target(rank))
        outcome.done += 1


def _unit(file: LoRAFile, options: DyLoRAOptions) -> int:
    module, stated = file.metadata.get("ss_network_module", _MODULE), str(network_args(file.metadata).get("unit", ""))
    if module != _MODULE:
        logger.warning("%s was trained with %s: its first ranks alone are no LoRA that was trained", file.path, module)
    if options.unit is not None:
        return options.unit
    if not stated.isdigit() or int(stated) == 0:
        raise UserError(f"{file.path} does not say the unit that it was trained with", "give it: --unit 4")
    return int(stated)


def _first_ranks(layer: LayerWeights, rank: int) -> LayerWeights:
    return LayerWeights(layer.down[:rank], layer.up[:, :rank], layer.alpha)


def _metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    args = {key: value for key, value in network_args(metadata).items() if key != "unit"}
    changed = {"ss_network_args": json.dumps(args)} if "ss_network_args" in metadata else {}
    return {**metadata, "ss_network_module": "networks.lora", **changed}
