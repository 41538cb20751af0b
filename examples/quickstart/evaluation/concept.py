"""Measures how close samples of "a shs fox on a ... background" are to the images of the fox.

    python examples/quickstart/evaluation/concept.py [FOLDER] [--lora FILE ...] [--grid IMAGE.png]

FOLDER is a Diffusers folder; without one, the quickstart's base model is measured. Eight samples are drawn with fixed
seeds, one for each of eight backgrounds. In each, the subject is what differs from the border's colour.
  colours  1 - overlap of the colour histograms (4x4x4 bins) of the subject and of the images' subjects;
           0 is equal, 1 shares no colour
  drawing  mean squared difference, 0 to 1, of the subject's bounding box at 16x16 pixels over gray,
           from the nearest image
Both are means over the eight samples, lower is closer. For comparison: the images themselves after the VAE (about the
best that can be reached), another animal, and the model alone. With several LoRA files each is measured alone, and
their mean and standard deviation follow.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sampling import HERE, generate, load, parser_of, sheet, through_vae
from scoring import border_colour

BACKGROUNDS = ["white", "blue", "green", "yellow", "pink", "black", "purple", "gray"]
SEEDS = list(range(100, 100 + len(BACKGROUNDS)))


def subject(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pixels of the subject, and the subject scaled over gray.  # (N, 3), 0 to 255; (16, 16, 3), 0 to 1"""
    image = image.astype(float)
    distance = np.sqrt(((image - border_colour(image)) ** 2).sum(-1))
    mask = distance > max(30, 0.35 * np.percentile(distance, 97))
    if mask.sum() < 20:
        mask[:] = True
    ys, xs = np.where(mask)
    # the outermost percent may be stray pixels
    (top, bottom), (left, right) = (np.percentile(values, (1, 99)).astype(int) for values in (ys, xs))
    cut = np.where(mask[..., None], image, 128.0)[top : bottom + 1, left : right + 1]
    height, width = cut.shape[:2]
    side = max(height, width)
    square = np.full((side, side, 3), 128.0)
    y, x = (side - height) // 2, (side - width) // 2
    square[y : y + height, x : x + width] = cut
    small = Image.fromarray(square.round().astype(np.uint8)).resize((16, 16), Image.Resampling.BOX)
    return image[mask], np.asarray(small, float) / 255


def histogram(pixels: np.ndarray) -> np.ndarray:
    bins = (pixels / 64).astype(int).clip(0, 3)
    counts = np.bincount(bins @ np.array([16, 4, 1]), minlength=64).astype(float)
    return counts / counts.sum()


class Concept:
    """What a subject looks like: the mean histogram of its images, and its drawings, mirrored too."""

    def __init__(self, images: list[np.ndarray]) -> None:
        found = [subject(image) for image in images]
        self.histogram = np.mean([histogram(pixels) for pixels, _ in found], 0)
        self.drawings = np.array([drawing for _, small in found for drawing in (small, small[:, ::-1])])

    def distances(self, images: list[np.ndarray]) -> np.ndarray:
        """The means of colours and drawing."""
        rows = []
        for image in images:
            pixels, small = subject(image)
            colours = 1 - np.minimum(histogram(pixels), self.histogram).sum()
            rows.append((colours, ((self.drawings - small) ** 2).mean((1, 2, 3)).min()))
        return np.mean(rows, 0)


def at_training_size(image: Image.Image, area: int = 64 * 64, step: int = 8) -> np.ndarray:
    """An image scaled to about this area, with sides that are a multiple of `step`."""
    scale = (area / (image.width * image.height)) ** 0.5
    size = (round(image.width * scale / step) * step, round(image.height * scale / step) * step)
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS))


def show(name: str, values: np.ndarray) -> None:
    print(f"{name:32s} colours {values[0]:.3f}   drawing {values[1]:.4f}")


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--images", type=Path, default=HERE.parent / "images", help="folder of the subject's images")
    parser.add_argument("--prompt", default="a shs fox on a {} background")
    parser.add_argument("--other", default="a bear on a {} background", help="prompt of another subject, to compare")
    options = parser.parse_args()
    files = sorted(options.images.glob("*.png"))
    if not files:
        parser.error(f"--images {options.images}: no PNG images there")
    images = [at_training_size(Image.open(path).convert("RGB")) for path in files]
    concept = Concept(images)
    pipe = load(options.folder, options.device)
    rows = []

    def measure(name: str, prompt: str) -> np.ndarray:
        drawn = generate(pipe, [prompt.format(name) for name in BACKGROUNDS], SEEDS, options.steps, options.scale)
        rows.extend(drawn)
        show(name, concept.distances(drawn))
        return concept.distances(drawn)

    show("the images after the VAE", concept.distances([through_vae(pipe, image)[0] for image in images]))
    measure("another subject", options.other)
    measure("the subject, the model alone", options.prompt)
    results = []
    for lora in options.lora:
        pipe = load(options.folder, options.device, lora, options.strength)
        results.append(measure(lora.stem[:32], options.prompt))
    if len(results) > 1:
        show("mean", np.mean(results, 0))
        show("standard deviation", np.std(results, 0, ddof=1))
    if options.grid:
        sheet(rows, len(SEEDS), 2).save(options.grid)
    return 0


if __name__ == "__main__":
    sys.exit(main())
