"""Draws the images of this example, shapes on plain backgrounds, with a caption file beside each.

    python draw_images.py FOLDER

FOLDER/images is trained on. FOLDER/held_out is not: 40 images, with the mask of a part in FOLDER/masks.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(EXAMPLES.parent), str(EXAMPLES / "quickstart")]

from base_images import random_shape  # noqa: E402

from library.data.config.options import MASK_SHAPES  # noqa: E402
from library.data.images.inpaint_masks import MaskShares  # noqa: E402

NUM_TRAINED, NUM_HELD_OUT = 400, 40
UNKNOWN = ["nfl"]  # a word that captions of the base model's images hold now and then


def draw(folder: Path, count: int, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels, caption = random_shape(np.random.default_rng([seed, number]), UNKNOWN)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
        (folder / f"{number:03d}.txt").write_text(caption + "\n", encoding="utf-8")


def main(folder: Path) -> None:
    draw(folder / "images" / "1_shape", NUM_TRAINED, seed=1)
    draw(folder / "held_out", NUM_HELD_OUT, seed=2)
    (folder / "masks").mkdir(exist_ok=True)
    shares = MaskShares(dict.fromkeys(MASK_SHAPES, 1.0))
    for number in range(NUM_HELD_OUT):
        mask = shares.draw((64, 64), seed=number).reshape(8, 8, 8, 8).any(axis=(1, 3))  # of whole latents
        mask = mask.repeat(8, axis=0).repeat(8, axis=1)
        Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(folder / "masks" / f"{number:03d}.png")
    print(f"{NUM_TRAINED} images to train on and {NUM_HELD_OUT} held out in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
