"""Without these a picture is trained turned, cut, mirrored or coloured otherwise than its owner sees it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from picture_files import save_picture
from PIL import Image

from library.cli.errors import UserError
from library.data.images import decode_image, place_image, to_pixels
from library.data.pictures import read_size
from library.data.records import Placement


def _corners(image: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(int(value) for value in image[row, column]) for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1))]


RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128)


def _four_colours() -> np.ndarray:
    """8 wide, 4 high: red and green above blue and grey."""
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:2, :4], pixels[:2, 4:], pixels[2:, :4], pixels[2:, 4:] = RED, GREEN, BLUE, GREY
    return pixels


@pytest.mark.parametrize(
    ("orientation", "corners"),
    [
        (1, [RED, GREEN, BLUE, GREY]),
        (2, [GREEN, RED, GREY, BLUE]),
        (3, [GREY, BLUE, GREEN, RED]),
        (4, [BLUE, GREY, RED, GREEN]),
        (5, [RED, BLUE, GREEN, GREY]),
        (6, [BLUE, RED, GREY, GREEN]),
        (7, [GREY, GREEN, BLUE, RED]),
        (8, [GREEN, GREY, RED, BLUE]),
        (9, [RED, GREEN, BLUE, GREY]),
    ],
)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, corners) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(_four_colours()).save(tmp_path / "a.png", exif=exif.tobytes())
    image = decode_image(str(tmp_path / "a.png"))
    assert _corners(image) == corners
    assert read_size(str(tmp_path / "a.png")) == (image.shape[1], image.shape[0])


def _saved(tmp_path: Path, image: Image.Image, name: str = "a.png", **options) -> np.ndarray:
    image.save(tmp_path / name, **options)
    decoded = decode_image(str(tmp_path / name))
    assert decoded.dtype == np.uint8 and decoded.shape[2] == 3
    return decoded


def test_transparency_becomes_white(tmp_path: Path) -> None:
    rgba = np.dstack([_four_colours(), np.full((4, 8), 255, np.uint8)])
    rgba[0, 0, 3], rgba[0, -1, 3] = 0, 128
    top_left, top_right, *rest = _corners(_saved(tmp_path, Image.fromarray(rgba)))
    assert top_left == (255, 255, 255)
    assert top_right == (127, 255, 127)
    assert rest == [BLUE, GREY]
    palette = Image.fromarray(_four_colours()).quantize(8)
    palette.info["transparency"] = palette.getpixel((0, 0))
    assert _corners(_saved(tmp_path, palette, "p.png")) == [(255, 255, 255), GREEN, BLUE, GREY]
    grey = Image.merge("LA", [Image.new("L", (2, 2), 7), Image.new("L", (2, 2), 0)])
    assert _corners(_saved(tmp_path, grey, "la.png"))[0] == (255, 255, 255)


def test_other_kinds_of_pixels_become_rgb(tmp_path: Path) -> None:
    colours = Image.fromarray(_four_colours())
    assert _corners(_saved(tmp_path, colours.quantize(8))) == [RED, GREEN, BLUE, GREY]
    assert _corners(_saved(tmp_path, colours.convert("L"), "l.png"))[3] == GREY
    assert _corners(_saved(tmp_path, Image.new("1", (3, 2), 1), "one.png"))[0] == (255, 255, 255)
    red_in_cmyk = _corners(_saved(tmp_path, colours.convert("CMYK"), "c.jpg", quality=100, subsampling=0))[0]
    assert np.abs(np.subtract(red_in_cmyk, RED)).max() < 12
    sixteen = np.array([[0, 65535], [257 * 100, 257 * 7]], np.uint16)
    assert [colour[0] for colour in _corners(_saved(tmp_path, Image.fromarray(sixteen), "i.png"))] == [0, 255, 100, 7]


def test_the_first_frame_counts_and_the_content_decides_the_kind(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), RED), Image.new("RGB", (4, 4), BLUE)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert _corners(decode_image(str(tmp_path / "a.webp")))[0] == RED
    frames[0].save(tmp_path / "b.png", format="BMP")
    assert _corners(decode_image(str(tmp_path / "b.png")))[0] == RED


def test_resized_cropped_and_mirrored() -> None:
    image = np.repeat(np.repeat(_four_colours(), 16, axis=0), 16, axis=1)  # 128 x 64
    placed = place_image(image, Placement((64, 64), (128, 64), (32, 0)), False)
    assert _corners(placed) == [RED, GREEN, BLUE, GREY]
    assert _corners(place_image(image, Placement((64, 64), (128, 64), (32, 0)), True)) == [GREEN, RED, GREY, BLUE]
    assert _corners(place_image(image, Placement((32, 32), (128, 64), (0, 0)), False)) == [RED] * 4
    assert _corners(place_image(image, Placement((64, 64), (128, 64), (64, 0)), False)) == [GREEN, GREEN, GREY, GREY]
    for resized in ((64, 32), (512, 256)):
        assert place_image(image, Placement((32, 24), resized, (16, 4)), False).shape == (24, 32, 3)


def test_shrinking_averages_and_enlarging_is_sharp() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    assert np.all(place_image(stripes, Placement((32, 32), (32, 32), (0, 0)), False) == 100)
    edge = np.zeros((16, 16, 3), np.uint8)
    edge[:, 8:] = 200
    assert place_image(edge, Placement((64, 64), (64, 64), (0, 0)), False).max() > 200  # Lanczos overshoots


def test_pixels_are_scaled_to_minus_one_and_one() -> None:
    pixels = to_pixels(np.array([[[0, 51, 255]]], np.uint8))
    assert pixels.shape == (3, 1, 1) and pixels.dtype == np.float32
    np.testing.assert_allclose(pixels.ravel(), [-1, -0.6, 1], atol=1e-6)


def test_a_truncated_picture_is_named(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "a.webp", "a.bmp"):
        path = save_picture(tmp_path / name, (64, 48))
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        with pytest.raises(UserError, match=name):
            decode_image(str(path))


def test_a_picture_of_absurd_size_is_named(tmp_path: Path) -> None:
    # header of a PNG of 60000 x 60000 pixels
    path = save_picture(tmp_path / "bomb.png", (8, 8))
    content = bytearray(path.read_bytes())
    content[16:24] = (60000).to_bytes(4, "big") * 2
    import zlib

    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match="bomb.png cannot be read: it has more than"):
        read_size(str(path))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["png", "jpg", "webp", "bmp"]), st.data())
def test_no_damage_surfaces_as_another_error(tmp_path: Path, ending: str, data) -> None:
    path = tmp_path / f"valid.{ending}"
    if not path.exists():
        save_picture(path, (24, 16))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = tmp_path / f"damaged.{ending}"
    damaged.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    for read in (read_size, decode_image):
        try:
            read(str(damaged))
        except UserError as error:
            assert damaged.name in error.message
