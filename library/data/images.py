"""From a picture file to the pixels that are trained."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image

from library.cli.errors import UserError
from library.data.pictures import exif_transpose, opened_picture
from library.data.records import ColourShift, LatentKey, Placement, TrainedImage


def decode_image(path: str) -> np.ndarray:
    """The first frame as RGB, uint8 (H, W, 3), EXIF orientation applied, transparency over white.

    Raises `UserError` naming the file if it is missing, truncated or damaged.
    """
    with opened_picture(path) as image:
        transpose = exif_transpose(image)
        image.load()  # here, because NumPy can hide what goes wrong while it asks for the pixels
        rgb = _to_rgb(image)
        return np.array(rgb if transpose is None else rgb.transpose(transpose))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey
        grey = np.asarray(image).astype(np.int64)
        return Image.fromarray(((np.clip(grey, 0, 65535) + 128) // 257).astype(np.uint8)).convert("RGB")
    if "A" not in image.getbands() and "a" not in image.getbands() and "transparency" not in image.info:
        return image.convert("RGB")
    with_alpha = image.convert("RGBA")
    white = Image.new("RGBA", with_alpha.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, with_alpha).convert("RGB")


def load_image(key: LatentKey, colour: ColourShift | None = None) -> TrainedImage:
    """The picture of a latent as it is trained.

    Raises `UserError` naming the file if it cannot be decoded or is not the one that was scanned.
    """
    image = decode_image(key.path)
    if (image.shape[1], image.shape[0]) != key.image_size:
        raise UserError(
            f"picture {key.path} has changed: it was {key.image_size[0]}x{key.image_size[1]} at the start and is "
            f"{image.shape[1]}x{image.shape[0]} now",
            hint="start again",
        )
    return TrainedImage(to_pixels(place_image(image, key.placement, key.flipped)))


def place_image(image: np.ndarray, placement: Placement, flipped: bool) -> np.ndarray:
    """Resizes, crops and mirrors: uint8 RGB (H, W, 3) of any size -> uint8 RGB of the bucket's size."""
    height, width = image.shape[:2]
    resized_width, resized_height = placement.resized
    if (width, height) != placement.resized:
        shrinks = resized_width * resized_height < width * height
        # area averaging does not alias when shrinking, Lanczos is the sharpest when enlarging
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LANCZOS4
        image = cv2.resize(image, placement.resized, interpolation=method)
    (left, top), (bucket_width, bucket_height) = placement.crop, placement.bucket
    image = image[top : top + bucket_height, left : left + bucket_width]
    return np.ascontiguousarray(image[:, ::-1] if flipped else image)


def to_pixels(image: np.ndarray) -> np.ndarray:
    """uint8 RGB (H, W, 3) -> float32 (3, H, W) in [-1, 1]."""
    return np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32) / np.float32(127.5) - np.float32(1)
