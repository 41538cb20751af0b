"""Statistics of the weights in a LoRA file: what has no effect, and what would give NaN."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TextIO

import torch

from library.cli.errors import listed, plural
from library.cli.jobs.outcome import Outcome
from library.models.weights.checkpoint_files import open_weights
from networks.adapters.formats.peft import own_form
from networks.adapters.weights import ALPHA, LORA_FILE, MAGNITUDE, parts_by_layer
from networks.weight_tools.adapter_kinds import kind_of
from networks.weight_tools.lora_file import LayerWeights, LoRAFile, open_lora
from networks.weight_tools.options.files import CheckOptions

logger = logging.getLogger(__name__)

_NUM_NAMED = 3
_HEADER = "rank  alpha     |down|       |up|         |update|     layer"


def check_file(options: CheckOptions, outcome: Outcome, out: TextIO | None = None) -> None:
    """Writes a line for each layer, or each key; a layer that is not finite is a failure, others count as done."""
    out = out or sys.stdout
    opened = open_weights(Path(options.source))
    tensors = own_form(opened.tensors, opened.metadata, opened.path)
    kind, is_dora = kind_of(tensors), any(key.endswith(f".{MAGNITUDE}") for key in tensors)
    if kind is LORA_FILE and not is_dora:
        _check_lora(open_lora(options.source), options, outcome, out)
    else:
        _check_other(parts_by_layer(tensors, kind, options.source), outcome, out)


def _check_other(layers: Mapping[str, Mapping[str, torch.Tensor]], outcome: Outcome, out: TextIO) -> None:
    """The lines of the keys of another adapter than a LoRA."""
    for name, parts in layers.items():
        for part, tensor in parts.items():
            out.write(f"{_key_line(f'{name}.{part}', tensor)}\n")
        _count(name, sum(int((~torch.isfinite(tensor.float())).sum()) for tensor in parts.values()), outcome)


def _count(name: str, num_nonfinite: int, outcome: Outcome) -> None:
    if num_nonfinite:
        outcome.failed[name] = f"{name}: {plural(num_nonfinite, 'value is', 'values are')} NaN or infinite"
    else:
        outcome.done += 1


def _check_lora(file: LoRAFile, options: CheckOptions, outcome: Outcome, out: TextIO) -> None:
    for line in _summary(file):
        out.write(f"{line}\n")
    dead = []
    out.write("" if options.show_all_keys else f"{_HEADER}\n")
    for name, layer in file.layers():
        if options.show_all_keys:
            for key in (key for key in file.tensors if key.partition(".")[0] == name):
                out.write(f"{_key_line(key, file.tensors[key])}\n")
        else:
            out.write(f"{_layer_line(name, layer)}\n")
        _count(name, num_nonfinite(layer), outcome)
        if name not in outcome.failed and is_dead(layer):
            dead.append(name)
    if dead:
        logger.warning(
            "%s no effect, all its weights are zero: %s",
            plural(len(dead), "layer has", "layers have"),
            listed(dead, _NUM_NAMED),
        )


def num_nonfinite(layer: LayerWeights) -> int:
    """How many values of a layer are NaN or infinite."""
    return sum(int((~torch.isfinite(tensor.float())).sum()) for tensor in (layer.down, layer.up)) + (
        0 if torch.isfinite(torch.tensor(layer.alpha)) else 1
    )


def is_dead(layer: LayerWeights) -> bool:
    """Whether a layer changes nothing: `lora_up` or `lora_down` is zero, as that of a layer that was not trained."""
    return layer.alpha == 0 or not bool(layer.down.any()) or not bool(layer.up.any())


def _summary(file: LoRAFile) -> Iterator[str]:
    num_text = sum(name.startswith("lora_te") for name in file.ranks)
    num_unet = len(file.ranks) - num_text
    num_values = sum(tensor.numel() for tensor in file.tensors.values())
    yield f"{file.path}: {plural(num_text, 'layer')} of the text encoder, {num_unet} of the U-Net"
    yield f"{num_values} values, stored in {str(file.dtype).removeprefix('torch.')}"


def _layer_line(name: str, layer: LayerWeights) -> str:
    """Rank, alpha, the mean absolute values of both factors, and the Frobenius norm of the update."""
    down, up = (tensor.float().flatten(1) for tensor in (layer.down, layer.up))
    square = ((up.T @ up) * (down @ down.T)).sum().clamp(min=0)  # tr(up^T up down down^T): no product of full size
    norm = float(square.sqrt()) * abs(layer.scale)
    means = f"{float(down.abs().mean()):<12.6g} {float(up.abs().mean()):<12.6g}"
    return f"{layer.rank:<5} {layer.alpha:<9.6g} {means} {norm:<12.6g} {name}"


def _key_line(key: str, tensor: torch.Tensor) -> str:
    values = tensor.float().abs()
    if key.endswith(f".{ALPHA}"):
        return f"{key}: {float(tensor):.6g}"
    mean, least, most = (f"{float(value):.6g}" for value in (values.mean(), values.min(), values.max()))
    return f"{key}: {'x'.join(map(str, tensor.shape))}, mean |x| {mean}, min |x| {least}, max |x| {most}"
