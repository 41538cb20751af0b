"""Without these images with a colour profile are trained duller, or redder, than their owner sees them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from library.data.images.decoding import decode_image, decode_layers
from tests.data.images.hand_made_files import SRGB_PRIMARIES, ink_profile, matrix_profile

LEVELS = np.linspace(0, 1, 4096)
LINEAR = (0.0, 1.0)
# IEC 61966-2-1: light from the value of a pixel
SRGB_CURVE = np.where(LEVELS <= 0.04045, LEVELS / 12.92, ((LEVELS + 0.055) / 1.055) ** 2.4)
RAMP = np.stack([np.arange(256), np.arange(256)[::-1], np.roll(np.arange(256), 77)], axis=-1).astype(np.uint8)[None]


def _value_of_light(light: np.ndarray) -> np.ndarray:
    """sRGB values, 0 to 255, of light from 0 to 1."""
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def _decoded(tmp_path: Path, image: Image.Image, profile: bytes, name: str = "a.png", **options) -> np.ndarray:
    image.save(tmp_path / name, icc_profile=profile, **options)
    return decode_image(str(tmp_path / name)).astype(int)


def test_exchanged_primaries_exchange_channels(tmp_path: Path) -> None:
    red, green, blue = SRGB_PRIMARIES
    profile = matrix_profile((green, blue, red), SRGB_CURVE)
    decoded = _decoded(tmp_path, Image.fromarray(RAMP), profile)
    assert np.abs(decoded - RAMP[..., [2, 0, 1]]).max() <= 1


@pytest.mark.parametrize("ending", ["png", "webp", "bmp"])
def test_linear_light_becomes_srgb(tmp_path: Path, ending: str) -> None:
    profile = matrix_profile(SRGB_PRIMARIES, LINEAR)
    options = {"lossless": True} if ending == "webp" else {}
    decoded = _decoded(tmp_path, Image.fromarray(RAMP), profile, f"a.{ending}", **options)
    expected = RAMP if ending == "bmp" else _value_of_light(RAMP / 255)  # a BMP file holds no profile
    assert np.abs(decoded - expected).max() <= 1.5


def test_profiles_of_grey_images(tmp_path: Path) -> None:
    ramp = np.arange(256, dtype=np.uint8)[None]
    expected = _value_of_light(ramp / 255)[..., None]
    grey = matrix_profile((), LINEAR)
    assert np.abs(_decoded(tmp_path, Image.fromarray(ramp), grey) - expected).max() <= 1.5
    colours = matrix_profile(SRGB_PRIMARIES, LINEAR)  # of an image that was made grey and kept its profile
    assert np.abs(_decoded(tmp_path, Image.fromarray(ramp), colours) - expected).max() <= 1.5
    with_alpha = Image.merge("LA", [Image.fromarray(ramp), Image.new("L", (256, 1), 255)])
    assert np.abs(_decoded(tmp_path, with_alpha, grey) - expected).max() <= 1.5
    sixteen = Image.fromarray(ramp.astype(np.uint16) * 257)
    assert np.abs(_decoded(tmp_path, sixteen, grey) - expected).max() <= 1.5


def test_profiles_of_cmyk_images(tmp_path: Path) -> None:
    corners = np.full((2, 2, 2, 2, 3), (0, 128, 128))  # black wherever there is more than one ink
    corners[0, 0, 0, 0, 0] = 255  # paper
    corners[1, 0, 0, 0, 0] = 128  # this cyan is a grey of L* 50
    profile = ink_profile(corners)
    for inks, value in (((0, 0, 0, 0), 255), ((255, 0, 0, 0), 119.6), ((0, 0, 0, 255), 0)):
        decoded = _decoded(tmp_path, Image.new("CMYK", (16, 16), inks), profile, "c.jpg", quality=100)
        assert np.abs(decoded - value).max() <= 2, inks


def test_colours_are_converted_before_they_are_laid_over_white(tmp_path: Path) -> None:
    opacity = np.linspace(0, 255, 256).astype(np.uint8)[None]
    rgba = Image.fromarray(np.dstack([RAMP, opacity]))
    decoded = _decoded(tmp_path, rgba, matrix_profile(SRGB_PRIMARIES, LINEAR))
    share = opacity[..., None] / 255
    expected = _value_of_light(RAMP / 255) * share + 255 * (1 - share)
    assert np.abs(decoded - expected).max() <= 2
    colours, alpha = decode_layers(str(tmp_path / "a.png"))
    np.testing.assert_array_equal(alpha, opacity)
    assert np.abs(colours - _value_of_light(RAMP / 255)).max() <= 1.5


def test_an_srgb_profile_changes_no_pixel(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    np.testing.assert_array_equal(_decoded(tmp_path, Image.fromarray(RAMP), profile), RAMP)
    by_hand = matrix_profile(SRGB_PRIMARIES, SRGB_CURVE)
    np.testing.assert_array_equal(_decoded(tmp_path, Image.fromarray(RAMP), by_hand), RAMP)


@pytest.mark.parametrize(
    "profile",
    [
        b"no profile",
        matrix_profile(SRGB_PRIMARIES, LINEAR)[:200],
        matrix_profile((), LINEAR),  # of grey, in an image with colours
        ink_profile(np.zeros((2, 2, 2, 2, 3))),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes(),
    ],
    ids=["broken", "cut", "grey", "cmyk", "lab", "xyz"],
)
def test_a_profile_that_says_nothing_of_the_image_is_ignored(tmp_path: Path, profile: bytes) -> None:
    np.testing.assert_array_equal(_decoded(tmp_path, Image.fromarray(RAMP), profile), RAMP)
