"""Decodes images and masks, resizes, crops and flips them: from a file to the pixels of training."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image

from library.cli.errors import UserError
from library.data.buckets import PIXELS_PER_LATENT
from library.data.images.augmentations import apply_colour
from library.data.images.colour_profiles import to_srgb
from library.data.images.image_files import exif_transpose, mask_size_problem, opened_image
from library.data.images.inpaint_masks import MaskShares, light_parts, masked_image, transparent_parts
from library.data.records import ColourShift, Item, LatentKey, Placement, ShardMember, Size, TrainedImage, size_text

_INTERPOLATIONS = {
    "lanczos": cv2.INTER_LANCZOS4,
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "linear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "cubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
}

_SWAPS_SIDES = (
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSPOSE,
    Image.Transpose.TRANSVERSE,
)

# PNG, third edition, 11.3.1.1: the transparent colour has the file's bit depth, and Pillow does not convert it
_TO_8_BITS = {
    "L;2": lambda grey: grey * 85,
    "L;4": lambda grey: grey * 17,
    "RGB;16B": lambda colour: tuple(value >> 8 for value in colour),
}


JPEG_SCALED = "jpeg_scaled"  # of `resize_interpolation`: JPEG files are decoded at a smaller scale


def decode_image(path: str, member: ShardMember | None = None, at_least: Size | None = None) -> np.ndarray:
    """The first frame as sRGB, uint8 (H, W, 3), EXIF orientation applied, transparency blended with white.

    `member`: of a shard, as for `opened_image`. `at_least`: a JPEG file may be decoded at 1/2, 1/4 or 1/8 of its size,
    where no side gets smaller than that: from fewer coefficients of its blocks, which is several times faster.
    Raises `UserError` naming the file if it is not found, truncated or corrupt.
    """
    return _decode(path, member, over_white=True, at_least=at_least)[0]


def decode_layers(path: str, member: ShardMember | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """As `decode_image`, but the colours as stored, and the alpha channel, uint8 (H, W), or None without one."""
    return _decode(path, member, over_white=False)


def _decode(
    path: str, member: ShardMember | None, *, over_white: bool, at_least: Size | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    with opened_image(path, member) as image:
        transpose = exif_transpose(image)
        if at_least is not None:  # does nothing to other files than JPEG
            image.draft(None, at_least[::-1] if transpose in _SWAPS_SIDES else at_least)
        profile = image.info.get("icc_profile")
        depth = image.tile[0][3] if image.tile else None
        image.load()  # here, because NumPy can hide errors of decoding
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
    """Colours (mode RGB, L or CMYK) and alpha channel (mode L) of a decoded image."""
    if image.mode.startswith("I"):
        return _layers_of_16_bits(image)
    if image.mode.startswith("F"):
        raise ValueError("floating-point pixels are not supported")
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
    """The image of a latent, resized, cropped and augmented, with its loss mask if it has one.

    Of a key that is masked by the image's own mask, the masked image with that mask.
    Raises `UserError` naming the file if it cannot be decoded or its size has changed since the scan.
    """
    at_least = key.placement.resized if key.interpolation == JPEG_SCALED and not key.alpha_is_mask else None
    image, opacity = (
        decode_layers(key.path, key.member)
        if key.alpha_is_mask
        else (decode_image(key.path, key.member, at_least), None)
    )
    size = (image.shape[1], image.shape[0])
    if size != key.image_size and not (at_least is not None and size in _scaled_sizes(key.image_size)):
        raise UserError(
            f"image {key.path} has changed: it was {size_text(key.image_size)} at the start, now {size_text(size)}",
            hint="start training again",
        )
    image = transform_image(image, key.placement, key.flipped, key.interpolation)
    if colour is not None:
        image = apply_colour(image, colour)
    if key.masked_by == "given":
        return masked_image(to_pixels(image), _given_mask(key, opacity))
    if key.mask_path is not None:
        return TrainedImage(to_pixels(image), load_mask(key))
    return TrainedImage(to_pixels(image), _mask(opacity, key) if key.alpha_is_mask else None)


def load_masked_image(item: Item, shares: MaskShares, image: TrainedImage | None = None) -> TrainedImage:
    """The masked image of an item, for inpainting, with its mask: the image's own, or one drawn by the item's seed.

    `image`: the image itself, where it is loaded already. Raises `UserError` as `load_image`.
    """
    key = item.latent_key.masked
    if key.masked_by == "given":
        return load_image(key, item.colour)
    pixels = (image or load_image(key, item.colour)).pixels
    return masked_image(pixels, shares.draw(key.placement.bucket, item.mask_seed))


def _scaled_sizes(size: Size) -> list[Size]:
    """Those that a JPEG file of this size can be decoded at."""
    return [(-(-size[0] // scale), -(-size[1] // scale)) for scale in (2, 4, 8)]


def load_mask(key: LatentKey) -> np.ndarray:
    """The mask image of a latent, resized and cropped as the image is: float32 (H/8, W/8) in [0, 1], its red channel.

    Its resolution may differ from the image's. Raises `UserError` naming the file if it cannot be decoded, or has
    another aspect ratio than the image.
    """
    return _mask(_red_channel(key), key)


def _red_channel(key: LatentKey) -> np.ndarray:
    assert key.mask_path is not None
    red = decode_image(key.mask_path)[:, :, 0]
    problem = mask_size_problem(key.mask_path, (red.shape[1], red.shape[0]), key.image_size)
    if problem is not None:
        raise problem
    return red


def _given_mask(key: LatentKey, opacity: np.ndarray | None) -> np.ndarray:
    """What is to be drawn of an image, bool (H, W): where its mask image is light, or where it is transparent."""
    if key.mask_path is not None:
        return light_parts(transform_image(_red_channel(key), key.placement, key.flipped, key.interpolation))
    if opacity is not None:
        opacity = transform_image(opacity, key.placement, key.flipped, key.interpolation)
    return transparent_parts(opacity, key.placement.bucket)


def _mask(values: np.ndarray | None, key: LatentKey) -> np.ndarray:
    """float32 (H/8, W/8) in [0, 1]: the mean over the pixels of each latent, of values up to 255; None gives ones."""
    width, height = (side // PIXELS_PER_LATENT for side in key.placement.bucket)
    if values is None:
        return np.ones((height, width), dtype=np.float32)
    transformed = transform_image(values, key.placement, key.flipped, key.interpolation)
    blocks = transformed.reshape(height, PIXELS_PER_LATENT, width, PIXELS_PER_LATENT)
    return blocks.mean(axis=(1, 3), dtype=np.float32) / np.float32(255)


def transform_image(
    image: np.ndarray, placement: Placement, flipped: bool, interpolation: str | None = None
) -> np.ndarray:
    """Resizes, crops and flips: uint8 (H, W) or (H, W, 3) of any size -> the same of the bucket's size.

    interpolation: one of `INTERPOLATIONS`; None: area for downscaling, Lanczos for upscaling.
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
    if interpolation in (None, JPEG_SCALED):
        is_smaller = size[0] * size[1] < image.shape[0] * image.shape[1]
        # area averaging does not alias when downscaling, Lanczos is the sharpest when upscaling
        interpolation = "area" if is_smaller else "lanczos"
    return cv2.resize(image, size, interpolation=_INTERPOLATIONS[str(interpolation)])


def to_pixels(image: np.ndarray) -> np.ndarray:
    """uint8 RGB (H, W, 3) -> float32 (3, H, W) in [-1, 1]."""
    pixels = np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32)
    pixels /= np.float32(127.5)
    pixels -= np.float32(1)
    return pixels
