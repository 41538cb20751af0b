"""Adapter weights of a file: ranks and alphas, and checks against the network that they are loaded into."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from library.cli.errors import UserError, listed, plural

_NUM_NAMED = 3
DOWN, UP, ALPHA = "lora_down.weight", "lora_up.weight", "alpha"


@dataclass(frozen=True)
class RankAndAlpha:
    """Rank and alpha of one layer; `alpha` None where the file has none."""

    rank: int
    alpha: float | None


def ranks_and_alphas(weights: Mapping[str, torch.Tensor], source: str) -> dict[str, RankAndAlpha]:
    """Rank and alpha by layer name. Raises UserError if there is none, or one is incomplete."""
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in weights.items():
        name, _, part = key.partition(".")
        if not name.startswith(("lora_unet_", "lora_te")) or part not in (DOWN, UP, ALPHA):
            raise UserError(f"{source}: {key} is not the key of a LoRA weight", hint=_KIND_HINT)
        parts.setdefault(name, {})[part] = tensor
    if not parts:
        raise UserError(f"{source} holds no weights", hint=_KIND_HINT)
    for name, layer in parts.items():
        for part in (DOWN, UP):
            if part not in layer:
                raise UserError(f"{source}: {name}.{part} is missing", hint=_KIND_HINT)
    return {
        name: RankAndAlpha(len(layer[DOWN]), float(layer[ALPHA]) if ALPHA in layer else None)
        for name, layer in parts.items()
    }


_KIND_HINT = "give a LoRA file with lora_down, lora_up and alpha for each layer, and the module that made it"


def fit_weights(weights: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`weights` with missing alphas added, and with (a, b) and (a, b, 1, 1) reshaped to the `expected` one.

    SD 2.x has its projections as Linear in one layout and as 1x1 convolutions in the other, with the same values.
    """
    fitted = dict(weights)
    for key, tensor in weights.items():
        shape = expected[key].shape if key in expected else tensor.shape
        if tensor.shape != shape and _without_pixels(tensor.shape) == _without_pixels(shape):
            fitted[key] = tensor.reshape(shape)
        name, _, part = key.partition(".")
        if part == DOWN and f"{name}.{ALPHA}" not in weights:
            fitted[f"{name}.{ALPHA}"] = torch.tensor(float(len(tensor)))
    return fitted


def _without_pixels(shape: torch.Size) -> tuple[int, ...]:
    return tuple(shape[:2]) if tuple(shape[2:]) == (1, 1) else tuple(shape)


def check_weights(
    weights: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], source: str, partly: bool = False
) -> None:
    """Raises UserError for surplus keys, for missing ones unless `partly`, and for other shapes."""
    _refuse([key for key in weights if key not in expected], source, "not in the network")
    if not partly:
        _refuse([key for key in expected if key not in weights], source, "missing")
    for key, tensor in weights.items():
        if tensor.shape != expected[key].shape:
            shapes = f"{tuple(tensor.shape)}, the network {tuple(expected[key].shape)}"
            raise UserError(f"{source}: {key} has the shape {shapes}", hint=_OTHER_NETWORK_HINT)


def _refuse(keys: Iterable[str], source: str, problem: str) -> None:
    keys = list(keys)
    if keys:
        count = plural(len(keys), "key is", "keys are")
        raise UserError(f"{source}: {count} {problem}: {listed(keys, _NUM_NAMED)}", hint=_OTHER_NETWORK_HINT)


_OTHER_NETWORK_HINT = (
    "use the base model, network arguments and trained parts (U-Net, text encoder) that the weights were made with"
)
