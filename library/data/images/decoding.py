"""From an image file to the pixels that are trained."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image

from library.cli.errors import UserError
from library.data.buckets import PIXELS_PER_LATENT
from library.data.images.augmentations import apply_colour
from library.data.images.colour_profiles import to_srgb
from library.data.images.image_files import exif_transpose, opened_image
from library.data.records import ColourShift, LatentKey, Placement, Size, TrainedImage

_INTERPOLATIONS = {
    "lanczos": cv2.INTER_LANCZOS4,
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "linear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "cubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
}

# PNG, third edition, 11.3.1.1: the transparent colour is given in the file's own depth, and Pillow leaves it there
_TO_8_BITS = {
    "L;2": lambda grey: grey * 85,
    "L;4": lambda grey: grey * 17,
    "RGB;16B": lambda colour: tuple(value >> 8 for value in colour),
}


def decode_image(path: str) -> np.ndarray:
    """The first frame as sRGB, uint8 (H, W, 3), EXIF orientation applied, transparency over white.

    Raises `UserError` naming the file if it is missing, truncated or damaged.
    """
    return _decode(path, over_white=True)[0]


def decode_layers(path: str) -> tuple[np.ndarray, np.ndarray | None]:
    """As `decode_image`, but the colours as they are stored, and the opacity, uint8 (H, W), or None without one."""
    return _decode(path, over_white=False)


def _decode(path: str, over_white: bool) -> tuple[np.ndarray, np.ndarray | None]:
    with opened_image(path) as image:
        transpose = exif_transpose(image)
        profile = image.info.get("icc_profile")
        depth = image.tile[0][3] if image.tile else None
        image.load()  # here, because NumPy can hide what goes wrong while it asks for the pixels
        if isinstance(depth, str) and depth in _TO_8_BITS and "transparency" in image.info:
            image.info["transparency"] = _TO_8_BITS[depth](image.info["transparency"])
        colours, opacity = _layers(image)
        colours = to_srgb(colours, profile)
        if over_white and opacity is not None:
            colours, opacity = _over_white(colours, opacity), None
        layers = [colours] if opacity is None else [colours, opacity]
        if transpose is not None:
            layers = [layer.transpose(transpose) for layer in layers]
        arrays = [np.asarray(layer) for layer in layers]
    return arrays[0], arrays[1] if opacity is not None else None


def _layers(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colours, in mode RGB, L or CMYK, and opacity, in mode L, of a decoded image."""
    if image.mode.startswith("I"):
        return _layers_of_16_bits(image)
    if image.mode.startswith("F"):
        raise ValueError("its pixels are floating-point numbers")
    if "transparency" in image.info or image.mode in ("PA", "La", "RGBa"):
        image = image.convert("RGBA")
    if "A" in image.getbands():
        return image.convert("L" if image.mode == "LA" else "RGB"), image.getchannel("A")
    if image.mode == "1":
        return image.convert("L"), None
    return (image if image.mode in ("RGB", "L", "CMYK") else image.convert("RGB")), None


def _layers_of_16_bits(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    grey = np.asarray(image).astype(np.int64)
    opacity = None
    if "transparency" in image.info:
        opacity = Image.fromarray(np.where(grey == image.info["transparency"], 0, 255).astype(np.uint8))
    return Image.fromarray(((np.clip(grey, 0, 65535) + 128) // 257).astype(np.uint8)), opacity


def _over_white(colours: Image.Image, opacity: Image.Image) -> Image.Image:
    if opacity.getextrema() == (255, 255):
        return colours
    white = Image.new("RGB", colours.size, "white")
    white.paste(colours, mask=opacity)
    return white


def load_image(key: LatentKey, colour: ColourShift | None = None) -> TrainedImage:
    """The image of a latent as it is trained, with the mask of its loss where its transparency is one.

    Raises `UserError` naming the file if it cannot be decoded or is not the one that was scanned.
    """
    image, opacity = _decode(key.path, over_white=not key.alpha_is_mask)
    if (image.shape[1], image.shape[0]) != key.image_size:
        raise UserError(
            f"image {key.path} has changed: it was {key.image_size[0]}x{key.image_size[1]} at the start and is "
            f"{image.shape[1]}x{image.shape[0]} now",
            hint="start again",
        )
    image = place_image(image, key.placement, key.flipped, key.interpolation)
    if colour is not None:
        image = apply_colour(image, colour)
    if key.mask_path is not None:
        return TrainedImage(to_pixels(image), load_mask(key))
    return TrainedImage(to_pixels(image), _mask(opacity, key) if key.alpha_is_mask else None)


_MOST_ASPECT_ERROR = 0.02  # of a mask image's aspect ratio against that of its image: what rounding can do


def load_mask(key: LatentKey) -> np.ndarray:
    """The mask image of a latent, placed as the image is: float32 (H/8, W/8) in [0, 1], from its red channel.

    It may be smaller or larger than the image. Raises `UserError` naming the file if it cannot be decoded, or has
    another aspect ratio than the image.
    """
    red = decode_image(key.mask_path)[:, :, 0]
    (height, width), (image_width, image_height) = red.shape, key.image_size
    if abs(width * image_height / (height * image_width) - 1) > _MOST_ASPECT_ERROR:
        raise UserError(
            f"mask {key.mask_path} is {width}x{height}, and its image {image_width}x{image_height}",
            hint="make a mask of the image's shape, or remove it from conditioning_data_dir",
        )
    return _mask(red, key)


def _mask(values: np.ndarray | None, key: LatentKey) -> np.ndarray:
    """float32 (H/8, W/8) in [0, 1]: the mean of the pixels of each latent, of values up to 255; ones without any."""
    width, height = (side // PIXELS_PER_LATENT for side in key.placement.bucket)
    if values is None:
        return np.ones((height, width), dtype=np.float32)
    placed = place_image(values, key.placement, key.flipped, key.interpolation)
    blocks = placed.reshape(height, PIXELS_PER_LATENT, width, PIXELS_PER_LATENT)
    return blocks.mean(axis=(1, 3), dtype=np.float32) / np.float32(255)


def place_image(image: np.ndarray, placement: Placement, flipped: bool, interpolation: str | None = None) -> np.ndarray:
    """Resizes, crops and mirrors: uint8 (H, W) or (H, W, 3) of any size -> the same of the bucket's size.

    interpolation: one of `INTERPOLATIONS`; None chooses by whether the image shrinks.
    """
    height, width = image.shape[:2]
    if (width, height) != placement.resized:
        image = _resized(image, placement.resized, interpolation)
    (left, top), (bucket_width, bucket_height) = placement.crop, placement.bucket
    image = image[top : top + bucket_height, left : left + bucket_width]
    return np.ascontiguousarray(image[:, ::-1] if flipped else image)


def _resized(image: np.ndarray, size: Size, interpolation: str | None) -> np.ndarray:
    if interpolation == "box":
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
    if interpolation is None:
        shrinks = size[0] * size[1] < image.shape[0] * image.shape[1]
        # area averaging does not alias when shrinking, Lanczos is the sharpest when enlarging
        interpolation = "area" if shrinks else "lanczos"
    return cv2.resize(image, size, interpolation=_INTERPOLATIONS[interpolation])


def to_pixels(image: np.ndarray) -> np.ndarray:
    """uint8 RGB (H, W, 3) -> float32 (3, H, W) in [-1, 1]."""
    pixels = np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32)
    pixels /= np.float32(127.5)
    pixels -= np.float32(1)
    return pixels
