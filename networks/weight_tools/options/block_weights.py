"""Block weights (`--lbws`): a factor for each block of the U-Net, as web UIs' lora-block-weight extension numbers them.

The first number, BASE, is for the text encoder and for layers in no block; then those of the way down (IN), of the
middle (MID) and of the way up (OUT). Imports no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from library.cli.errors import UserError
from networks.adapters.arguments.blocks import SD_BLOCKS, SDXL_BLOCKS, BlockLayout, block_index, layout_of


def _sdxl_names() -> tuple[str, ...]:
    """The names by `block_index`; "" for the ends, which have no number."""
    names = [*(f"IN{number:02}" for number in range(9)), *["MID"] * 3, *(f"OUT{number:02}" for number in range(9))]
    return ("", *names, "")


_SD_NAMES = (*(f"IN{number:02}" for number in range(12)), "MID", *(f"OUT{number:02}" for number in range(12)))
_SDXL_NAMES = _sdxl_names()
# how many numbers there are -> the blocks, and which of them the numbers are for, after BASE
_FORMS: dict[int, tuple[BlockLayout, tuple[str, ...]]] = {
    26: (SD_BLOCKS, _SD_NAMES),
    17: (
        SD_BLOCKS,
        ("IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "MID", *(f"OUT{number:02}" for number in range(3, 12))),
    ),
    20: (SDXL_BLOCKS, (*_SDXL_NAMES[1:11], *_SDXL_NAMES[13:22])),
    12: (SDXL_BLOCKS, ("IN04", "IN05", "IN07", "IN08", "MID", *(f"OUT{number:02}" for number in range(6)))),
}
_COUNTS = "26 or 17 numbers, of SDXL 20 or 12"


@dataclass(frozen=True)
class BlockWeights:
    """The factor of each block by its name (IN01), and that of the rest."""

    base: float
    layout: BlockLayout
    by_block: dict[str, float]

    def factors(self, layers: list[str], source: str) -> dict[str, float]:
        """The factor of each layer of a file. Raises `UserError` where it is of another kind of model."""
        if layout_of(layers) != self.layout:
            raise UserError(f"--lbws with {len(self.by_block) + 1} numbers does not fit {source}", f"give {_COUNTS}")
        return {layer: self.factor(layer) for layer in layers}

    def factor(self, layer: str) -> float:
        """The factor of a layer, by its name in LoRA files. Raises `UserError` for a block without a number."""
        index = block_index(layer, self.layout) if layer.startswith("lora_unet_") else None
        block = "" if index is None else (_SDXL_NAMES if self.layout.ends else _SD_NAMES)[index]
        if block and block not in self.by_block:
            raise UserError(
                f"--lbws with {len(self.by_block) + 1} numbers has none for block {block}, which has {layer}",
                f"give one for each block: {20 if self.layout.ends else 26} numbers",
            )
        return self.by_block[block] if block else self.base


def parse_block_weights(text: str) -> BlockWeights:
    """Numbers with commas between them, in brackets or not. Raises `UserError`."""
    parts = text.strip().removeprefix("[").removesuffix("]").split(",")
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        raise UserError(f"--lbws {text}: not numbers with commas between them", f"give {_COUNTS}") from None
    if len(numbers) not in _FORMS or not all(map(math.isfinite, numbers)):
        raise UserError(f"--lbws {text}: has {len(numbers)} numbers", f"give {_COUNTS}")
    layout, names = _FORMS[len(numbers)]
    return BlockWeights(numbers[0], layout, dict(zip(names, numbers[1:], strict=True)))
