"""Adapter weights of a file: ranks and alphas, and checks against the network that they are loaded into."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from library.cli.errors import UserError, listed, plural

_NUM_NAMED = 3
DOWN, UP, ALPHA = "lora_down.weight", "lora_up.weight", "alpha"
MAGNITUDE = "dora_scale"  # of DoRA


@dataclass(frozen=True)
class FileKind:
    """A kind of adapter file: its name, and the tensors that each layer has, and may have beside alpha."""

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()

    @property
    def hint(self) -> str:
        """What to do about a file of another kind."""
        parts = ", ".join(part.removesuffix(".weight") for part in self.required or self.optional)
        return f"give a {self.name} file with {parts} and alpha for each layer, and the module that made it"


LORA_FILE = FileKind("LoRA", (DOWN, UP), optional=(MAGNITUDE,))


def with_names(weights: Mapping[str, torch.Tensor], other_names: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """The weights of a file under the names of the model's layers. `other_names`: names in files -> these."""
    if not other_names:
        return dict(weights)
    split = {key: key.partition(".") for key in weights}
    return {f"{other_names.get(name, name)}{dot}{rest}": weights[key] for key, (name, dot, rest) in split.items()}


def parts_by_layer(
    weights: Mapping[str, torch.Tensor], kind: FileKind, source: str
) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of each layer by their names in it. Raises UserError if there is none, or one is incomplete."""
    layers: dict[str, dict[str, torch.Tensor]] = {}
    known = (*kind.required, *kind.optional, ALPHA)
    for key, tensor in weights.items():
        name, _, part = key.partition(".")
        if not name.startswith(("lora_unet_", "lora_te")) or part not in known:
            raise UserError(f"{source}: {key} is not the key of a {kind.name} weight", hint=kind.hint)
        layers.setdefault(name, {})[part] = tensor
    if not layers:
        raise UserError(f"{source} holds no weights", hint=kind.hint)
    for name, parts in layers.items():
        for part in kind.required:
            if part not in parts:
                raise UserError(f"{source}: {name}.{part} is missing", hint=kind.hint)
    return layers


def is_by_input(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether the magnitudes of a layer of a DoRA are those of input channels."""
    return MAGNITUDE in tensors and len(tensors[MAGNITUDE]) == 1 < len(tensors[UP])


@dataclass(frozen=True)
class RankAndAlpha:
    """Rank and alpha of one layer; `alpha` None where the file has none."""

    rank: int
    alpha: float | None


def ranks_and_alphas(weights: Mapping[str, torch.Tensor], source: str) -> dict[str, RankAndAlpha]:
    """Rank and alpha of a LoRA file by layer name. Raises UserError if there is none, or one is incomplete.

    A DoRA is refused: its update is not `lora_up` @ `lora_down` alone.
    """
    magnitude = next((key for key in weights if key.endswith(f".{MAGNITUDE}")), None)
    if magnitude is not None:
        raise UserError(f"{source} is a DoRA ({magnitude}), not a LoRA", hint="give a LoRA file without dora_scale")
    return {
        name: RankAndAlpha(len(layer[DOWN]), float(layer[ALPHA]) if ALPHA in layer else None)
        for name, layer in parts_by_layer(weights, LORA_FILE, source).items()
    }


def fit_weights(
    weights: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], ranks: Mapping[str, int]
) -> dict[str, torch.Tensor]:
    """`weights` with missing alphas (those of the `ranks`) and with (a, b) and (a, b, 1, 1) reshaped as `expected`.

    SD 2.x has its projections as Linear in one layout and as 1x1 convolutions in the other, with the same values.
    """
    fitted = dict(weights)
    for key, tensor in weights.items():
        shape = expected[key].shape if key in expected else tensor.shape
        if tensor.shape != shape and _without_pixels(tensor.shape) == _without_pixels(shape):
            fitted[key] = tensor.reshape(shape)
    for name in {key.partition(".")[0] for key in weights}:
        if f"{name}.{ALPHA}" not in weights and name in ranks:
            fitted[f"{name}.{ALPHA}"] = torch.tensor(float(ranks[name]))
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
