"""Measures whether the tiny model draws what a prompt says: 100 prompts of shapes, 40 of emoji, with fixed seeds.

    python examples/quickstart/evaluation/evaluate.py [FOLDER] [--lora FILE ...] [--grid IMAGE.png]

FOLDER is a Diffusers folder; without one, the quickstart's base model is measured. Prints, in percent:
  background  the border has the colour that the prompt names
  colour      the shape has the colour that the prompt names
  shape       the outline fits the named shape better than the seven others
  position    centre, left, right, top or bottom, as the prompt says
  emoji       the nearest of the reference emoji (16x16 pixels, same background) is the named one
  in first 5  the named one is among the five nearest
and the PSNR of images sent through the VAE and back, with the scores of those images, which samples can hardly pass.
With several LoRA files each is measured alone, and their mean and standard deviation follow.
"""

from __future__ import annotations

import json
import sys

import numpy as np
from drawing import draw_emoji, draw_shape
from sampling import HERE, generate, load, parser_of, sheet, through_vae
from scoring import EmojiIndex, border_colour, nearest_colour, score_shape

COLUMNS = ["background", "colour", "shape", "position", "emoji", "in first 5", "emoji background"]
Images = list[np.ndarray]


def scores(shape_images: Images, emoji_images: Images, prompts: dict, index: EmojiIndex) -> np.ndarray:
    """The percentages of `COLUMNS`."""
    found = [score_shape(image, item) for image, item in zip(shape_images, prompts["shapes"], strict=True)]
    shapes = [[score[name] for score in found] for name in COLUMNS[:4]]
    emoji: list[list[bool]] = [[], [], []]
    for image, item in zip(emoji_images, prompts["emoji"], strict=True):
        nearest = index.order(image, item["background"])
        emoji[0].append(nearest[0] == item["word"])
        emoji[1].append(item["word"] in nearest[:5])
        emoji[2].append(nearest_colour(border_colour(image)) == item["background"])
    return np.array([100 * np.mean(values) for values in [*shapes, *emoji]])


def drawn(prompts: dict, index: EmojiIndex) -> tuple[Images, Images]:
    """What a perfect model would draw for the prompts."""
    names = ("colour", "shape", "background", "size", "position")
    shapes = [draw_shape(**{name: item[name] for name in names}) for item in prompts["shapes"]]
    return shapes, [draw_emoji(index.emoji[item["word"]], item["background"], size=57) for item in prompts["emoji"]]


def show(name: str, values: np.ndarray) -> None:
    cells = [f"{value:{len(column) + 2}.0f}" for value, column in zip(values, COLUMNS, strict=True)]
    print(f"{name:24s}" + "".join(cells))


def main() -> int:
    options = parser_of(__doc__).parse_args()
    prompts = json.loads((HERE / "prompts.json").read_text(encoding="utf-8"))
    index = EmojiIndex(HERE / "reference")
    print(" " * 24 + "".join(f"  {column}" for column in COLUMNS) + "   (percent)")
    shapes, emoji = drawn(prompts, index)
    show("drawn", scores(shapes, emoji, prompts, index))
    pipe = load(options.folder, options.device)
    decoded = [[through_vae(pipe, image) for image in images] for images in (shapes, emoji)]
    show("drawn, through the VAE", scores(*[[image for image, _ in part] for part in decoded], prompts, index))

    def draw(items: list[dict]) -> Images:
        seeds = [item["seed"] for item in items]
        return generate(pipe, [item["prompt"] for item in items], seeds, options.steps, options.scale)

    results, images = [], []
    for lora in options.lora or [None]:
        if lora:
            pipe = load(options.folder, options.device, lora, options.strength)
        parts = [draw(items) for items in (prompts["shapes"], prompts["emoji"])]
        results.append(scores(*parts, prompts, index))
        images += [image for part in parts for image in part]
        show(lora.stem[:23] if lora else "samples", results[-1])
    if len(results) > 1:
        show("mean", np.mean(results, 0))
        show("standard deviation", np.std(results, 0, ddof=1))
    psnr = [np.mean([value for _, value in part]) for part in decoded]
    print(f"VAE: PSNR {psnr[0]:.1f} dB of shapes, {psnr[1]:.1f} dB of emoji")
    if options.grid:
        sheet(images, 20).save(options.grid)
    return 0


if __name__ == "__main__":
    sys.exit(main())
