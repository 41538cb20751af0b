"""Draws the images of this example, with a caption file and a tag file beside each: python draw_images.py FOLDER"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {
    "red": (220, 40, 40), "orange": (245, 140, 30), "yellow": (250, 215, 50), "green": (60, 160, 70),
    "blue": (40, 90, 215), "purple": (130, 60, 170), "white": (250, 250, 250),
}  # fmt: skip
SIZE, FINER = 96, 4  # drawn larger and scaled down, for smooth edges
LEFT_OUT = {("red", "blue"), ("green", "white"), ("yellow", "purple")}  # the prompts ask for these


def draw_windmill(colour: str, background: str) -> Image.Image:
    """A tower in one colour with four black sails, on a plain background."""
    image = Image.new("RGB", (SIZE * FINER, SIZE * FINER), COLOURS[background])
    draw = ImageDraw.Draw(image)

    def scaled(*points: tuple[int, int]) -> list[tuple[int, int]]:
        return [(x * FINER, y * FINER) for x, y in points]

    draw.polygon(scaled((38, 40), (58, 40), (70, 90), (26, 90)), fill=COLOURS[colour])
    for sail in ([(44, 36), (20, 4), (8, 16)], [(52, 36), (76, 4), (88, 16)]):
        draw.polygon(scaled(*sail), fill="black")
        draw.polygon(scaled(*((x, 72 - y) for x, y in sail)), fill="black")
    draw.ellipse(scaled((42, 30), (54, 42)), fill=COLOURS[colour])
    return image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def article(word: str) -> str:
    return "an" if word.startswith(tuple("aeiou")) else "a"


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pairs = [pair for pair in product(COLOURS, COLOURS) if pair[0] != pair[1] and pair not in LEFT_OUT]
    for colour, background in pairs:
        path = folder / f"{colour}_{background}.png"
        draw_windmill(colour, background).save(path)
        caption = f"{article(colour)} {colour} windmill on {article(background)} {background} background"
        path.with_suffix(".caption").write_text(caption + "\n", encoding="utf-8")
        tags = f"windmill, {colour}_windmill, no_humans, {background}_background"
        path.with_suffix(".txt").write_text(tags + "\n", encoding="utf-8")
    print(f"{len(pairs)} images in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
