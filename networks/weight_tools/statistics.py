"""Statistics of the weights in a LoRA file: what has no effect, and what would give NaN."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from typing import TextIO

import torch

from library.cli.errors import listed, plural
from library.cli.jobs.outcome import Outcome
from networks.adapters.weights import ALPHA
from networks.weight_tools.lora_file import LayerWeights, LoRAFile, open_lora
from networks.weight_tools.options.files import CheckOptions

logger = logging.getLogger(__name__)

_NUM_NAMED = 3
_HEADER = "rank  alpha     |down|       |up|         |update|     layer"


def check_file(options: CheckOptions, outcome: Outcome, out: TextIO | None = None) -> None:
    """Writes a line for each layer, or each key; a layer that is not finite is a failure, others count as done."""
    file = open_lora(options.source)
    out = out or sys.stdout
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
        number = num_nonfinite(layer)
        if number:
            outcome.failed[name] = f"{name}: {plural(number, 'value is', 'values are')} NaN or infinite"
        else:
            outcome.done += 1
            dead += [name] if is_dead(layer) else []
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
