"""How well holes of held-out images are filled: by the base model, whose latents are masked, and by the trained one.

    python evaluate.py FOLDER MODEL [--base BASE] [--grid IMAGE.png]

FOLDER: what draw_images.py has written. Both models are run by StableDiffusionInpaintPipeline of Diffusers, with the
same seeds; it masks the latents of a model that takes no mask: after each step, what is not to be drawn is replaced by
the image's own latents with the noise of that step. Neither is given what was in the hole, which is grey. Prints the
mean squared error inside the holes, of pixels in [0, 1], and its standard error over the images: without a word about
the image, and with its caption.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline
from PIL import Image

BASE = Path(__file__).resolve().parents[1] / "quickstart" / "base"
STEPS, NUM_SHOWN, GREY = 25, 8, 0.5


def load(folder: Path) -> StableDiffusionInpaintPipeline:
    pipe = StableDiffusionInpaintPipeline.from_pretrained(
        str(folder), torch_dtype=torch.float32, safety_checker=None, local_files_only=True
    )
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def read(folder: Path, mode: str) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path).convert(mode)) for path in sorted(folder.glob("*.png"))])


def fill(pipe: StableDiffusionInpaintPipeline, prompts: list[str], images: np.ndarray, holes: np.ndarray) -> np.ndarray:
    """The images, (N, 64, 64, 3) in [0, 1], as they are drawn with their holes filled."""
    return pipe(
        prompts,
        image=[Image.fromarray((image * 255).round().astype(np.uint8)) for image in images],
        mask_image=[Image.fromarray(hole) for hole in holes],
        generator=[torch.Generator().manual_seed(number) for number in range(len(images))],
        height=64, width=64, strength=1.0, num_inference_steps=STEPS, guidance_scale=1.0, output_type="np",
    ).images  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--base", type=Path, default=BASE)
    parser.add_argument("--grid", type=Path, metavar="IMAGE.png", help="write some of the images, as rows")
    given = parser.parse_args()
    true = read(given.folder / "held_out", "RGB").astype(np.float32) / 255
    holes = read(given.folder / "masks", "L") >= 128
    captions = [path.read_text(encoding="utf-8").strip() for path in sorted((given.folder / "held_out").glob("*.txt"))]
    masked = np.where(holes[..., None], np.float32(GREY), true)
    rows = [true, masked]
    for name, model in (("base, by masking latents", given.base), ("inpainting model", given.model)):
        pipe = load(model)
        for what, prompts in (("without a word", [""] * len(true)), ("with captions", captions)):
            filled = fill(pipe, prompts, masked, holes)
            if what == "without a word":
                rows.append(filled)
            squares = ((filled - true) ** 2).mean(axis=-1)
            errors = np.array([square[hole].mean() for square, hole in zip(squares, holes, strict=True)])
            error = errors.std() / math.sqrt(len(errors))
            print(f"{name}, {what}: {errors.mean():.4f} +- {error:.4f} in {len(errors)} images", flush=True)
    if given.grid is not None:
        sheet = np.concatenate([np.concatenate(list(row[:NUM_SHOWN]), axis=1) for row in rows])
        Image.fromarray((sheet * 255).round().astype(np.uint8)).save(given.grid)


if __name__ == "__main__":
    main()
