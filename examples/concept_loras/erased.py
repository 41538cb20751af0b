"""Measures what a LoRA has erased: which emoji the quickstart's model draws for 40 words, without the LoRA and with it.

    python examples/concept_loras/erased.py LORA.safetensors [--word frog] [--grid IMAGE.png]

Prompts, seeds and scores are those of the quickstart's evaluation: an emoji is right where it is the nearest of the 40
references. Prints whether that of the word is, and how many of the others are; the grid shows the word and seven
others, without the LoRA above and with it below.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

QUICKSTART = Path(__file__).resolve().parent.parent / "quickstart"
sys.path.append(str(QUICKSTART / "evaluation"))

from sampling import HERE, generate, load, sheet  # noqa: E402
from scoring import EmojiIndex  # noqa: E402

SHOWN = 7  # others on the grid
STEPS, SCALE = 25, 4.0  # as evaluate.py has them


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lora", type=Path, metavar="LORA", help="the file of the LoRA")
    parser.add_argument("--word", default="frog", help="what was erased")
    parser.add_argument("--grid", type=Path, metavar="IMAGE.png", help="write the samples to this image")
    options = parser.parse_args()
    items = json.loads((HERE / "prompts.json").read_text(encoding="utf-8"))["emoji"]
    index, shown = EmojiIndex(HERE / "reference"), []
    for name, lora in (("without the LoRA", None), ("with the LoRA", options.lora)):
        pipe = load(QUICKSTART / "base", "cpu", lora)
        images = generate(pipe, [each["prompt"] for each in items], [each["seed"] for each in items], STEPS, SCALE)
        print(report(name, options.word, items, images, index))
        others = [image for item, image in zip(items, images, strict=True) if item["word"] != options.word]
        shown += [
            images[[item["word"] for item in items].index(options.word)],
            *others[:: len(others) // SHOWN][:SHOWN],
        ]
    if options.grid:
        sheet(shown, SHOWN + 1, 2).save(options.grid)
    return 0


def report(name: str, word: str, items: list[dict], images: list[np.ndarray], index: EmojiIndex) -> str:
    """What the word's prompt shows, and how many of the other prompts show what they name."""
    orders = {item["word"]: index.order(image, item["background"]) for item, image in zip(items, images, strict=True)}
    right = [other for other, order in orders.items() if other != word and order[0] == other]
    of = len(orders) - 1
    place = orders[word].index(word) + 1
    return (
        f"{name}: {word} is number {place} of the nearest, {orders[word][0]} the first;"
        f" {len(right)} of the {of} others are right ({100 * len(right) / of:.0f} percent)"
    )


if __name__ == "__main__":
    sys.exit(main())
