"""Options of the adapter networks: the `--network_*` flags and `--network_args`. Imports no torch.

Each network module has a row in `NETWORK_ARGS`, each argument one in `_NETWORK_ARGS` or `_LAYER_ARGS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from library.cli.errors import UserError, nearest_name, raise_together
from library.cli.foreign_options import says_something
from networks.adapters.arguments.blocks import (
    BlockRates,
    LRWeights,
    block_alphas,
    block_dims,
    lr_weights,
    mid_lr_weight,
    threshold,
)
from networks.adapters.arguments.numbers import alpha, kronecker_factor, probability, rank, ratio, yes_or_no
from networks.adapters.arguments.patterns import patterns, reg_dims, reg_lrs

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
    Ranks and alphas by block of the U-Net come before those of all; a rank of 0 there, or in `reg_dims`: no layer. The
    patterns are over module names; `reg_lrs` are learning rates, `block_rates` factors of the U-Net's. `layer_args`:
    arguments of one kind of layers alone, as keyword arguments of its class.
    """

    dim: int
    alpha: float | None
    conv_dim: int | None
    conv_alpha: float | None
    dropout: Dropout
    loraplus_text_encoder_lr_ratio: float | None
    loraplus_unet_lr_ratio: float | None
    layer_args: Mapping[str, Any] = field(default_factory=dict)
    block_dims: tuple[int, ...] | None = None
    block_alphas: tuple[float | None, ...] | None = None
    conv_block_dims: tuple[int, ...] | None = None
    conv_block_alphas: tuple[float | None, ...] | None = None
    block_rates: BlockRates | None = None
    exclude_patterns: tuple[re.Pattern[str], ...] = ()
    include_patterns: tuple[re.Pattern[str], ...] = ()
    reg_dims: tuple[tuple[re.Pattern[str], int], ...] = ()
    reg_lrs: tuple[tuple[re.Pattern[str], float], ...] = ()

    @property
    def has_convolutions(self) -> bool:
        """Whether 3x3 convolutions get layers."""
        return self.conv_dim is not None or self.conv_block_dims is not None


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
    errors = [_unknown(module, name) for name in network_args if name not in takes]

    def read(flag: str, value: Any, parse: Callable[[Any], Any], default: Any) -> Any:
        if value is None:
            return default
        try:
            return parse(value)
        except ValueError as error:
            errors.append(UserError(f"{flag} is {value!r}, but must be {error}", hint="give such a value"))
            return default

    dim = read("--network_dim", network_dim, rank, _DEFAULT_DIM)
    own_alpha = read("--network_alpha", network_alpha, alpha, None)
    dropout = read("--network_dropout", neuron_dropout, probability, 0.0)
    given = {name: network_args[name] for name in takes if _is_given(name, network_args.get(name))}
    values = {
        name: read(f"{name} of --network_args", given.get(name), parse, None)
        for name, parse in {**_NETWORK_ARGS, **_LAYER_ARGS}.items()
    }
    raise_together(errors)
    ratio_of_both, conv_alpha = values["loraplus_lr_ratio"], values["conv_alpha"]
    return AdapterOptions(
        dim,
        own_alpha,
        values["conv_dim"],
        _DEFAULT_CONV_ALPHA if conv_alpha is None else conv_alpha,
        Dropout(dropout, values["rank_dropout"] or 0.0, values["module_dropout"] or 0.0),
        loraplus_text_encoder_lr_ratio=values["loraplus_text_encoder_lr_ratio"] or ratio_of_both,
        loraplus_unet_lr_ratio=values["loraplus_unet_lr_ratio"] or ratio_of_both,
        layer_args={name: values[name] for name in _LAYER_ARGS if values[name] is not None},
        **{name: values[name] for name in _BY_BLOCK},
        block_rates=_block_rates(values),
        exclude_patterns=values["exclude_patterns"] or (),
        include_patterns=values["include_patterns"] or (),
        reg_dims=values["network_reg_dims"] or (),
        reg_lrs=values["network_reg_lrs"] or (),
    )


def _block_rates(values: Mapping[str, Any]) -> BlockRates | None:
    """None where no block has a factor of its own."""
    down, mid, up = (values[name] for name in _LR_WEIGHTS)
    if down is mid is up is None:
        return None
    return BlockRates(
        down or LRWeights(), mid or LRWeights(), up or LRWeights(), values["block_lr_zero_threshold"] or 0
    )


def _is_given(name: str, value: Any) -> bool:
    return says_something(value) or (name == "mid_lr_weight" and str(value).strip() in ("0", "0.0"))


def without_effect(
    module: str, neuron_dropout: float | None, network_args: Mapping[str, Any], of_file: bool = False
) -> Iterator[str]:
    """A line for each argument that does nothing in this module, or without another one.

    `of_file`: in a network made from a file.
    """
    if neuron_dropout and module in _WITHOUT_NEURONS:
        yield f"--network_dropout does nothing: {module} has no neurons at the rank; rank_dropout does something"
    given = [name for name, value in network_args.items() if _is_given(name, value)]
    for name in given:
        needed = _NEEDED.get(name, ())
        if of_file and name in _OF_NEW_NETWORKS:
            yield f"{name} of --network_args does nothing: the layers and their ranks are those of the file"
        elif needed and not set(needed) & set(given):
            yield f"{name} of --network_args does nothing without {' or '.join(needed)}"


def _unknown(module: str, name: str) -> UserError:
    takes = NETWORK_ARGS[module]
    nearest = nearest_name(name, takes)
    hint = f"did you mean {nearest}?" if nearest else f"{module} knows {', '.join(takes)}"
    return UserError(f"--network_args: {module} has no argument {name!r}", hint=hint)


_NETWORK_ARGS: dict[str, Callable[[Any], Any]] = {
    "conv_dim": rank,
    "conv_alpha": alpha,
    "rank_dropout": probability,
    "module_dropout": probability,
    "loraplus_lr_ratio": ratio,
    "loraplus_unet_lr_ratio": ratio,
    "loraplus_text_encoder_lr_ratio": ratio,
    "block_dims": block_dims,
    "block_alphas": block_alphas,
    "conv_block_dims": block_dims,
    "conv_block_alphas": block_alphas,
    "down_lr_weight": lr_weights,
    "mid_lr_weight": mid_lr_weight,
    "up_lr_weight": lr_weights,
    "block_lr_zero_threshold": threshold,
    "exclude_patterns": patterns,
    "include_patterns": patterns,
    "network_reg_dims": reg_dims,
    "network_reg_lrs": reg_lrs,
}
# arguments of some kinds of layers: keyword arguments of their classes
_LAYER_ARGS: dict[str, Callable[[Any], Any]] = {
    "use_dora": yes_or_no,
    "use_tucker": yes_or_no,
    "factor": kronecker_factor,
    "decompose_both": yes_or_no,
    "unit": rank,
}

_BY_BLOCK = ("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas")
_LR_WEIGHTS = ("down_lr_weight", "mid_lr_weight", "up_lr_weight")
_PATTERNS = ("exclude_patterns", "include_patterns", "network_reg_dims", "network_reg_lrs")
_LORAPLUS = ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")
_OF_EVERY_KIND = (
    "conv_dim",
    "conv_alpha",
    *_BY_BLOCK,
    "module_dropout",
    *_LR_WEIGHTS,
    "block_lr_zero_threshold",
    *_PATTERNS,
)
# network module -> the arguments that it takes
NETWORK_ARGS: dict[str, tuple[str, ...]] = {
    "networks.lora": (*_OF_EVERY_KIND, "rank_dropout", *_LORAPLUS, "use_dora"),
    "networks.lora_fa": (*_OF_EVERY_KIND, "rank_dropout"),
    "networks.dylora": (*_OF_EVERY_KIND, *_LORAPLUS, "unit"),
    "networks.loha": (*_OF_EVERY_KIND, "rank_dropout", "use_tucker"),
    "networks.lokr": (*_OF_EVERY_KIND, "rank_dropout", "use_tucker", "factor", "decompose_both"),
    "networks.oft": (*_OF_EVERY_KIND, "rank_dropout"),
}
_WITHOUT_NEURONS = ("networks.loha", "networks.lokr", "networks.oft")
# argument -> those without which it does nothing
_NEEDED: dict[str, tuple[str, ...]] = {
    "conv_alpha": ("conv_dim", "conv_block_dims"),
    "conv_block_alphas": ("conv_dim", "conv_block_dims"),
    "block_lr_zero_threshold": _LR_WEIGHTS,
    "include_patterns": ("exclude_patterns",),
    "use_tucker": ("conv_dim", "conv_block_dims"),
}
_OF_NEW_NETWORKS = (
    "conv_dim", "conv_alpha", *_BY_BLOCK, "exclude_patterns", "include_patterns", "network_reg_dims", "use_dora",
    "use_tucker", "factor", "decompose_both",
)  # fmt: skip
