"""Measures a slider for size: the area of what the quickstart's model draws with the LoRA at multipliers from -2 to 2.

    python examples/concept_loras/slider.py LORA.safetensors [--grid IMAGE.png]

Prompts and seeds are those shapes of the quickstart's evaluation whose size the prompt does not say. The shape is what
differs from the border's colour, as in its scores; the area is the share of the image, in percent, a mean over all.
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
from scoring import border_colour  # noqa: E402

MULTIPLIERS = (-2, -1, 0, 1, 2)
NUM_PROMPTS, SHOWN = 20, 8
STEPS, SCALE = 25, 4.0  # as evaluate.py has them


def area(image: np.ndarray) -> float:
    """The share of the image that the shape covers, in percent."""
    colours = image.astype(float)
    distance = np.sqrt(((colours - border_colour(colours)) ** 2).sum(-1))
    return 100 * float((distance > max(25, 0.5 * np.percentile(distance, 97))).mean())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lora", type=Path, metavar="LORA", help="the file of the LoRA")
    parser.add_argument("--grid", type=Path, metavar="IMAGE.png", help="write the samples to this image")
    options = parser.parse_args()
    items = json.loads((HERE / "prompts.json").read_text(encoding="utf-8"))["shapes"]
    items = [item for item in items if not item["size"] and not item["position"]][:NUM_PROMPTS]
    shown = []
    for multiplier in MULTIPLIERS:
        pipe = load(QUICKSTART / "base", "cpu", options.lora, multiplier)
        images = generate(pipe, [item["prompt"] for item in items], [item["seed"] for item in items], STEPS, SCALE)
        print(f"multiplier {multiplier:+d}: area {np.mean([area(image) for image in images]):.1f} percent")
        shown += images[:SHOWN]
    if options.grid:
        sheet(shown, SHOWN, 2).save(options.grid)
    return 0


if __name__ == "__main__":
    sys.exit(main())
