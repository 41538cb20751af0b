"""Options of the adapter networks: the `--network_*` flags and `--network_args`. Imports no torch.

Each network module has a row in `NETWORK_ARGS`, each argument one in `_NETWORK_ARGS` or `_LAYER_ARGS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from library.cli.errors import UserError, nearest_name, raise_together
from library.cli.foreign_options import says_something

_DEFAULT_DIM = 4
_DEFAULT_CONV_ALPHA = 1.0


@dataclass(frozen=True)
class Dropout:
    """Probabilities in training: of each neuron at the rank, of each rank for a sample, of a layer's whole update."""

    neuron: float = 0.0
    rank: float = 0.0
    module: float = 0.0


@dataclass(frozen=True)
class AdapterOptions:
    """Ranks, alphas, dropout and rate ratios of an adapter.

    Alpha None is the rank; `conv_dim` None: no 3x3 convolutions; a LoRA+ ratio None: one learning rate for all weights.
    `layer_args`: arguments of one kind of layers alone, as keyword arguments of its class.
    """

    dim: int
    alpha: float | None
    conv_dim: int | None
    conv_alpha: float | None
    dropout: Dropout
    loraplus_text_encoder_lr_ratio: float | None
    loraplus_unet_lr_ratio: float | None
    layer_args: Mapping[str, Any] = field(default_factory=dict)


def parse_network_args(
    module: str,
    network_dim: int | None,
    network_alpha: float | None,
    neuron_dropout: float | None,
    network_args: Mapping[str, Any],
) -> AdapterOptions:
    """Parses and checks all values for a module of `NETWORK_ARGS`; those of `network_args` may be strings.

    Raises UserError.
    """
    takes = NETWORK_ARGS[module]
    later = [name for name, value in network_args.items() if name in _LATER_ARGS and says_something(value)]
    errors = [_unknown(module, name) for name in network_args if name not in (*takes, *_LATER_ARGS)]
    if later:
        message = f"--network_args {', '.join(later)}: {module} does not implement this yet"
        errors.append(UserError(message, hint="leave it out: the LoRA would be a different one"))

    def read(flag: str, value: Any, parse: Callable[[Any], Any], default: Any) -> Any:
        if value is None:
            return default
        try:
            return parse(value)
        except ValueError as error:
            errors.append(UserError(f"{flag} is {value!r}, but must be {error}", hint="give such a number"))
            return default

    dim = read("--network_dim", network_dim, _rank, _DEFAULT_DIM)
    alpha = read("--network_alpha", network_alpha, _alpha, None)
    dropout = read("--network_dropout", neuron_dropout, _probability, 0.0)
    values = {
        name: read(
            f"{name} of --network_args", _unless_off(network_args.get(name) if name in takes else None), parse, None
        )
        for name, parse in {**_NETWORK_ARGS, **_LAYER_ARGS}.items()
    }
    conv_dim, conv_alpha = values["conv_dim"], values["conv_alpha"]
    raise_together(errors)
    ratio = values["loraplus_lr_ratio"]
    return AdapterOptions(
        dim,
        alpha,
        conv_dim,
        _DEFAULT_CONV_ALPHA if conv_alpha is None else conv_alpha,
        Dropout(dropout, values["rank_dropout"] or 0.0, values["module_dropout"] or 0.0),
        loraplus_text_encoder_lr_ratio=values["loraplus_text_encoder_lr_ratio"] or ratio,
        loraplus_unet_lr_ratio=values["loraplus_unet_lr_ratio"] or ratio,
        layer_args={name: values[name] for name in _LAYER_ARGS if values[name] is not None},
    )


def _unless_off(value: Any) -> Any:
    return value if says_something(value) else None


def _unknown(module: str, name: str) -> UserError:
    takes = NETWORK_ARGS[module]
    nearest = nearest_name(name, (*takes, *_LATER_ARGS))
    hint = f"did you mean {nearest}?" if nearest else f"{module} knows {', '.join(takes)}"
    return UserError(f"--network_args: {module} has no argument {name!r}", hint=hint)


def _number(value: Any, description: str, accepts: Callable[[float], bool]) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(description) from None
    if not math.isfinite(number) or not accepts(number):
        raise ValueError(description)
    return number


def _rank(value: Any) -> int:
    return int(_number(value, "a whole number from 1", lambda number: number >= 1 and number == int(number)))


def _alpha(value: Any) -> float | None:
    return _number(value, "a number above 0, or 0 for the rank", lambda number: number >= 0) or None


def _probability(value: Any) -> float:
    return _number(value, "a number from 0 to below 1", lambda number: 0 <= number < 1)


def _ratio(value: Any) -> float:
    return _number(value, "a number above 0", lambda number: number > 0)


_NETWORK_ARGS: dict[str, Callable[[Any], Any]] = {
    "conv_dim": _rank,
    "conv_alpha": _alpha,
    "rank_dropout": _probability,
    "module_dropout": _probability,
    "loraplus_lr_ratio": _ratio,
    "loraplus_unet_lr_ratio": _ratio,
    "loraplus_text_encoder_lr_ratio": _ratio,
}
# arguments of some kinds of layers: keyword arguments of their classes
_LAYER_ARGS: dict[str, Callable[[Any], Any]] = {}
# known arguments that are not implemented yet; their "off" values are accepted
_LATER_ARGS = (
    "block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas",
    "down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold", "use_dora",
)  # fmt: skip

_OF_EVERY_KIND = ("conv_dim", "conv_alpha", "rank_dropout", "module_dropout")
_LORAPLUS = ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")
# network module -> the arguments that it takes
NETWORK_ARGS: dict[str, tuple[str, ...]] = {
    "networks.lora": (*_OF_EVERY_KIND, *_LORAPLUS),
}
