"""Decoding and resizing large photographs (3000x2000 JPEG) to a bucket of 512 pixels, against Pillow alone.

    python -m benchmarks.photographs [--num 40]

Pillow alone: the image decoded whole and resized by its own box filter. One process of one thread; files are read from
the system's cache. Images per second of each, in turns, and their ratio.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from benchmarks.figures import Figure, ratio, table
from library.data.images.decoding import load_image, to_pixels
from library.data.records import LatentKey, Placement

SIZE, RESIZED, BUCKET = (3000, 2000), (704, 470), (704, 448)


def make_photograph(path: Path, number: int) -> None:
    """Smooth colours with detail of several sizes, which compress about as photographs do."""
    rng = np.random.default_rng(number)
    image = np.zeros((SIZE[1], SIZE[0], 3), np.float32)
    for size, strength in ((4, 90), (30, 40), (200, 20), (1000, 8)):
        coarse = rng.normal(128 if size == 4 else 0, strength, (size, size, 3)).astype(np.float32)
        image += cv2.resize(coarse, SIZE, interpolation=cv2.INTER_CUBIC)
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path, quality=92)


def by_pillow(path: Path) -> None:
    with Image.open(path) as image:
        resized = image.convert("RGB").resize(RESIZED, Image.Resampling.BOX)
    left, top = (RESIZED[0] - BUCKET[0]) // 2, (RESIZED[1] - BUCKET[1]) // 2
    to_pixels(np.asarray(resized)[top : top + BUCKET[1], left : left + BUCKET[0]])


def by_the_dataset(path: Path, interpolation: str | None) -> None:
    crop = ((RESIZED[0] - BUCKET[0]) // 2, (RESIZED[1] - BUCKET[1]) // 2)
    placement = Placement(BUCKET, RESIZED, crop)
    load_image(LatentKey(str(path), path.name, SIZE, 0, placement, flipped=False, interpolation=interpolation))


def figures(num_rounds: int, num_images: int = 10) -> list[Figure]:
    cv2.setNumThreads(1)
    works: dict[str, Callable[[Path], None]] = {
        "Pillow alone": by_pillow,
        "as by default": partial(by_the_dataset, interpolation=None),
        "--resize_interpolation jpeg_scaled": partial(by_the_dataset, interpolation="jpeg_scaled"),
    }
    speeds: dict[str, list[float]] = {name: [] for name in works}
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.jpg" for number in range(num_images)]
        for number, path in enumerate(paths):
            make_photograph(path, number)
        for _ in range(num_rounds):
            for name, work in works.items():
                start = time.process_time()
                for path in paths:
                    work(path)
                speeds[name].append(num_images / (time.process_time() - start))
    bare = speeds["Pillow alone"]
    shown = [Figure(name, tuple(values), "images/s") for name, values in speeds.items()]
    return shown + [ratio(f"{name} / Pillow", values, bare, None) for name, values in speeds.items() if values != bare]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--num", type=int, default=10, help="number of images")
    options = parser.parse_args()
    print(table(figures(options.rounds, options.num)))


if __name__ == "__main__":
    main()
