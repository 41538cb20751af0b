"""Which layers of a model get adapter layers, of what rank and alpha, and at what learning rate."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from library.cli.errors import UserError
from networks.adapters.arguments.blocks import BlockLayout, block_index, layout_of
from networks.adapters.arguments.patterns import matched
from networks.adapters.options import AdapterOptions
from networks.adapters.targets import Target, is_spatial

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LayerRate:
    """The learning rate of a layer: `factor` times that of its part, or its `own`; layers of one `group` share theirs.

    `group` is a suffix of the name of the parameter group.
    """

    group: str = ""
    factor: float = 1.0
    own: float | None = None

    def of(self, part_rate: float | None) -> float | None:
        """The rate where the part has this one; None: the layer is not trained."""
        if self.own is not None:
            return self.own or None
        return None if part_rate is None or self.factor == 0 else part_rate * self.factor


@dataclass(frozen=True)
class Choice:
    """A layer to be made; alpha None: the rank."""

    target: Target
    rank: int
    alpha: float | None


def choose_layers(options: AdapterOptions, targets: Sequence[Target]) -> list[Choice]:
    """Those of the targets that get a layer; a pattern that matches none of them is a warning.

    A block with the learning rate weight 0 gets none: what is not trained is not saved either.
    """
    layout = _layout(options, targets)
    rates = layer_rates(options, targets)
    choices = []
    for target in targets:
        rank, alpha = _rank_and_alpha(options, target, block_index(target.name, layout))
        reg_dim = matched(options.reg_dims, target.path)
        rank = rank if reg_dim is None else reg_dim[1]
        rate = rates[target.name]
        if rank > 0 and not _is_excluded(options, target.path) and (rate.own is not None or rate.factor > 0):
            choices.append(Choice(target, rank, alpha))
    for argument, pattern in _patterns(options):
        if not any(pattern.fullmatch(target.path) for target in targets):
            logger.warning("%s of --network_args: %s matches no module", argument, pattern.pattern)
    return choices


def layer_rates(options: AdapterOptions, targets: Sequence[Target]) -> dict[str, LayerRate]:
    """The learning rates of layers by their names."""
    layout = _layout(options, targets)
    weights = options.block_rates.weights(layout) if options.block_rates is not None else None
    rates = {}
    for target in targets:
        reg_lr, block = matched(options.reg_lrs, target.path), block_index(target.name, layout)
        if reg_lr is not None:
            rates[target.name] = LayerRate(f"_reg_lr_{reg_lr[0]}", own=reg_lr[1])
        elif weights is not None and block is not None:
            rates[target.name] = LayerRate(f"_block{block}", factor=weights[block])
        else:
            rates[target.name] = LayerRate()
    return rates


def _layout(options: AdapterOptions, targets: Sequence[Target]) -> BlockLayout:
    """The blocks of the U-Net. Raises UserError for options with another number of them."""
    layout = layout_of([target.name for target in targets])
    too_many = options.block_rates.too_many(layout) if options.block_rates is not None else None
    if too_many:
        raise UserError(
            f"--network_args: {too_many} has more numbers than this U-Net has blocks",
            hint=f"it has {layout.down} on the way down and up, {layout.mid} in the middle",
        )
    for name in ("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas"):
        values = getattr(options, name)
        if values is not None and len(values) != layout.count:
            raise UserError(
                f"--network_args: {name} has {len(values)} values, but this U-Net has {layout.count} blocks",
                hint="give one for each block",
            )
    return layout


def _rank_and_alpha(options: AdapterOptions, target: Target, block: int | None) -> tuple[int, float | None]:
    """By block where the options have it so, else as of all layers; rank 0: no layer."""
    rank, alpha = options.dim, options.alpha
    dims, alphas = options.block_dims, options.block_alphas
    if is_spatial(target.module):
        rank, alpha = options.conv_dim or 0, options.conv_alpha
        dims, alphas = options.conv_block_dims, options.conv_block_alphas
    if block is None:
        return rank, alpha
    return dims[block] if dims else rank, alphas[block] if alphas else alpha


def _is_excluded(options: AdapterOptions, path: str) -> bool:
    excluded, included = (
        any(pattern.fullmatch(path) for pattern in patterns)
        for patterns in (options.exclude_patterns, options.include_patterns)
    )
    return excluded and not included


def _patterns(options: AdapterOptions) -> Iterator[tuple[str, re.Pattern[str]]]:
    yield from (("exclude_patterns", pattern) for pattern in options.exclude_patterns)
    yield from (("include_patterns", pattern) for pattern in options.include_patterns)
    yield from (("network_reg_dims", pattern) for pattern, _ in options.reg_dims)
    yield from (("network_reg_lrs", pattern) for pattern, _ in options.reg_lrs)
