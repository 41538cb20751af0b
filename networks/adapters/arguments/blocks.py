"""Ranks, alphas and learning rates by block of the U-Net, as other programs number the blocks.

SD 1.x and 2.x have 25 blocks: 12 of the way down, the middle, 12 of the way up. SDXL has 23: the embeddings, 9, 3, 9,
the output layer. A rate curve rises or falls over the blocks of the way down, or of the way up.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from networks.adapters.arguments.numbers import alpha, number, rank_or_none

CURVES: dict[str, Callable[[float], float]] = {
    "sine": lambda way: math.sin(math.pi / 2 * way),
    "cosine": lambda way: math.sin(math.pi / 2 * (1 - way)),
    "linear": lambda way: way,
    "reverse_linear": lambda way: 1 - way,
    "zeros": lambda way: 0.0,
}


@dataclass(frozen=True)
class BlockLayout:
    """How many blocks a U-Net has: on the way down, in the middle, on the way up; `ends`: one more on either side."""

    down: int
    mid: int
    up: int
    ends: bool = False

    @property
    def count(self) -> int:
        return self.down + self.mid + self.up + 2 * self.ends


SD_BLOCKS = BlockLayout(12, 1, 12)
SDXL_BLOCKS = BlockLayout(9, 3, 9, ends=True)
_COUNTS = f"{SD_BLOCKS.count} of them (SDXL: {SDXL_BLOCKS.count})"

_SD_NAME = re.compile(
    r"lora_unet_(?:(down|up)_blocks_(\d)|mid_block)_(resnets|attentions|downsamplers|upsamplers)_(\d)_"
)
_SDXL_NAME = re.compile(r"lora_unet_(?:(input|output)_blocks|middle_block)_(\d)_")


def layout_of(names: list[str]) -> BlockLayout:
    """The blocks of the U-Net whose layers have these names in adapter files."""
    return SDXL_BLOCKS if any(_SDXL_NAME.match(name) for name in names) else SD_BLOCKS


def block_index(name: str, layout: BlockLayout) -> int | None:
    """The number of the block of a layer, by its name in adapter files; None for layers in no block."""
    if layout.ends:
        return _sdxl_index(name)
    found = _SD_NAME.match(f"{name}_")
    if found is None:
        return None
    way, block, kind, place = found.groups()
    if way is None:
        return layout.down
    within = 3 * int(block) + (2 if kind in ("downsamplers", "upsamplers") else int(place))
    return within + (1 if way == "down" else layout.down + layout.mid)


def _sdxl_index(name: str) -> int | None:
    if name.startswith(("lora_unet_time_embed_", "lora_unet_label_emb_")):
        return 0
    if name.startswith("lora_unet_out_"):
        return SDXL_BLOCKS.count - 1
    found = _SDXL_NAME.match(f"{name}_")
    if found is None:
        return None
    start = {"input": 1, None: 1 + SDXL_BLOCKS.down, "output": 1 + SDXL_BLOCKS.down + SDXL_BLOCKS.mid}
    return start[found.group(1)] + int(found.group(2))


def block_dims(value: Any) -> tuple[int, ...]:
    """The rank of each block; 0: no layers in it."""
    return tuple(rank_or_none(part) for part in _of_each_block(value, f"whole numbers from 0, {_COUNTS}"))


def block_alphas(value: Any) -> tuple[float | None, ...]:
    """The alpha of each block; None: its rank."""
    return tuple(alpha(part) for part in _of_each_block(value, f"numbers above 0, or 0 for the rank, {_COUNTS}"))


def _of_each_block(value: Any, description: str) -> list[str]:
    parts = str(value).split(",")
    if len(parts) not in (SD_BLOCKS.count, SDXL_BLOCKS.count):
        raise ValueError(f"{description}, but has {len(parts)}")
    for part in parts:
        number(part, description, lambda number: number >= 0)
    return parts


@dataclass(frozen=True)
class LRWeights:
    """Factors of the U-Net's learning rate by block: a curve with something added, or `numbers`, then ones."""

    curve: str | None = None
    added: float = 0.0
    numbers: tuple[float, ...] = (1.0,)

    def over(self, count: int) -> list[float]:
        """One for each of `count` blocks."""
        if self.curve is None:
            return [*self.numbers, *[1.0] * (count - len(self.numbers))]
        steps = max(1, count - 1)
        return [CURVES[self.curve](place / steps) + self.added for place in range(count)]


def lr_weights(value: Any) -> LRWeights:
    """Of the way down or up: a curve, such as `cosine+.25`, or numbers. An empty number is 0."""
    curves = ", ".join(CURVES)
    description = f"{SD_BLOCKS.down} numbers (SDXL: {SDXL_BLOCKS.down}), or one of {curves}, as cosine or cosine+.25"
    name, plus, added = str(value).partition("+")
    if name.strip() in CURVES:
        return LRWeights(name.strip(), number(added, description) if plus else 0.0)
    parts = str(value).split(",")
    if not 2 <= len(parts) <= SD_BLOCKS.down:
        raise ValueError(description)
    return LRWeights(numbers=_numbers(parts, description))


def mid_lr_weight(value: Any) -> LRWeights:
    """Of the middle: one number, three for SDXL."""
    description = f"a number (SDXL: {SDXL_BLOCKS.mid})"
    parts = str(value).split(",")
    if len(parts) > SDXL_BLOCKS.mid:
        raise ValueError(description)
    return LRWeights(numbers=_numbers(parts, description))


def _numbers(parts: list[str], description: str) -> tuple[float, ...]:
    return tuple(number(part.strip() or 0, description, lambda number: number >= 0) for part in parts)


def threshold(value: Any) -> float:
    return number(value, "a number from 0", lambda number: number >= 0)


@dataclass(frozen=True)
class BlockRates:
    """Factors of the U-Net's learning rate on the way down, in the middle and on the way up; 0 up to the threshold."""

    down: LRWeights = LRWeights()
    mid: LRWeights = LRWeights()
    up: LRWeights = LRWeights()
    zero_threshold: float = 0.0

    def weights(self, layout: BlockLayout) -> list[float]:
        """One for each block; 1 for what lies on either side of SDXL's."""
        parts = (self.down.over(layout.down), self.mid.over(layout.mid), self.up.over(layout.up))
        inner = [weight if weight > self.zero_threshold else 0.0 for part in parts for weight in part]
        return [1.0, *inner, 1.0] if layout.ends else inner

    def too_many(self, layout: BlockLayout) -> str | None:
        """The argument with more numbers than the model has blocks."""
        given = {"down_lr_weight": (self.down, layout.down), "mid_lr_weight": (self.mid, layout.mid)}
        given["up_lr_weight"] = (self.up, layout.up)
        return next((name for name, (part, most) in given.items() if len(part.numbers) > most), None)
