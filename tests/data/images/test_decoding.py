"""Without these an image is trained turned, cut, mirrored or coloured otherwise than its owner sees it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from library.cli.errors import UserError
from library.data.config.options import INTERPOLATIONS
from library.data.images.decoding import decode_image, load_image, to_pixels, transform_image
from library.data.images.image_files import read_size
from library.data.records import ColourShift, LatentKey, Placement
from tests.data.image_files import save_image


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
    placed = transform_image(image, Placement((64, 64), (128, 64), (32, 0)), False)
    assert _corners(placed) == [RED, GREEN, BLUE, GREY]
    assert _corners(transform_image(image, Placement((64, 64), (128, 64), (32, 0)), True)) == [GREEN, RED, GREY, BLUE]
    assert _corners(transform_image(image, Placement((32, 32), (128, 64), (0, 0)), False)) == [RED] * 4
    assert _corners(transform_image(image, Placement((64, 64), (128, 64), (64, 0)), False)) == [
        GREEN,
        GREEN,
        GREY,
        GREY,
    ]
    for resized in ((64, 32), (512, 256)):
        assert transform_image(image, Placement((32, 24), resized, (16, 4)), False).shape == (24, 32, 3)


def test_shrinking_averages_and_enlarging_is_sharp() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    assert np.all(transform_image(stripes, Placement((32, 32), (32, 32), (0, 0)), False) == 100)
    edge = np.zeros((16, 16, 3), np.uint8)
    edge[:, 8:] = 200
    assert transform_image(edge, Placement((64, 64), (64, 64), (0, 0)), False).max() > 200  # Lanczos overshoots


def _step(width: int) -> np.ndarray:
    """0 on the left, 100 on the right, one row."""
    return np.repeat(np.array([[0] * (width // 2) + [100] * (width // 2)], np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize(
    ("interpolation", "row"),
    [
        # twice as wide; the centres of the new pixels lie a quarter of an old one beside those of the old ones
        ("nearest", [0, 0, 0, 0, 100, 100, 100, 100]),
        ("bilinear", [0, 0, 0, 25, 75, 100, 100, 100]),
        # Keys' kernel with a = -0.75: w(0.75) + w(1.75) = 0.2617 - 0.0352 beside the edge
        ("bicubic", [0, 0, 0, 22.7, 77.3, 100, 100, 100]),
        ("box", [0, 0, 0, 0, 100, 100, 100, 100]),
    ],
)
def test_interpolations_are_those_that_are_named(interpolation: str, row: list[int]) -> None:
    placed = transform_image(_step(4), Placement((8, 1), (8, 1), (0, 0)), False, interpolation)[0, :, 0]
    if interpolation == "bicubic":
        placed, row = placed[3:5], row[3:5]
    np.testing.assert_allclose(placed.astype(int), row, atol=1)


def test_every_interpolation_shrinks_and_enlarges() -> None:
    image = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)
    blocks = image.reshape(12, 2, 18, 2, 3).mean(axis=(1, 3))
    results = {}
    for interpolation in INTERPOLATIONS:
        small = transform_image(image, Placement((18, 12), (18, 12), (0, 0)), False, interpolation)
        assert transform_image(image, Placement((72, 48), (72, 48), (0, 0)), False, interpolation).shape == (48, 72, 3)
        results[interpolation] = small
    for interpolation in ("area", "box", "bilinear"):  # at half the size the same: the mean of four pixels
        np.testing.assert_allclose(results[interpolation].astype(float), blocks, atol=1)
    np.testing.assert_array_equal(results["bilinear"], results["linear"])
    np.testing.assert_array_equal(results["bicubic"], results["cubic"])
    assert len({each.tobytes() for each in results.values()}) >= 5
    # more than one value of the neighbours decides, and edges overshoot
    assert transform_image(_step(16), Placement((64, 1), (64, 1), (0, 0)), False, "lanczos").max() > 100


def _key(path: Path, size: tuple[int, int], placement: Placement, **settings) -> LatentKey:
    return LatentKey(str(path), path.name, size, 0, placement, **{"flipped": False, **settings})


@pytest.mark.parametrize("flipped", [False, True])
def test_a_mask_is_the_mean_opacity_of_the_pixels_of_each_latent(tmp_path: Path, flipped: bool) -> None:
    opacity = np.random.default_rng(1).integers(0, 256, (32, 40), dtype=np.uint8)
    rgba = np.dstack([np.full((32, 40, 3), 51, np.uint8), opacity])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    placement = Placement((24, 16), (40, 32), (5, 7))
    key = _key(tmp_path / "a.png", (40, 32), placement, flipped=flipped, alpha_is_mask=True)
    image = load_image(key)
    window = opacity[7:23, 5:29]
    window = window[:, ::-1] if flipped else window
    expected = [
        [window[8 * row : 8 * row + 8, 8 * column : 8 * column + 8].mean() / 255 for column in range(3)]
        for row in range(2)
    ]
    assert image.mask.shape == (2, 3) and image.mask.dtype == np.float32
    np.testing.assert_allclose(image.mask, expected, atol=1e-6)
    np.testing.assert_allclose(image.pixels, -0.6, atol=1e-6)  # as stored, not over white


def test_a_mask_is_resized_with_its_image(tmp_path: Path) -> None:
    opacity = np.zeros((64, 64), np.uint8)
    opacity[:32, :32] = 255
    Image.fromarray(np.dstack([np.zeros((64, 64, 3), np.uint8), opacity])).save(tmp_path / "a.png")
    placement = Placement((16, 16), (16, 16), (0, 0))
    mask = load_image(_key(tmp_path / "a.png", (64, 64), placement, alpha_is_mask=True)).mask
    np.testing.assert_array_equal(mask, [[1, 0], [0, 0]])


def test_without_transparency_everything_counts_and_without_alpha_mask_there_is_none(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", (16, 8))
    placement = Placement((16, 8), (16, 8), (0, 0))
    mask = load_image(_key(tmp_path / "a.png", (16, 8), placement, alpha_is_mask=True)).mask
    np.testing.assert_array_equal(mask, np.ones((1, 2)))
    assert load_image(_key(tmp_path / "a.png", (16, 8), placement)).mask is None
    Image.new("RGBA", (16, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    over_white = load_image(_key(tmp_path / "clear.png", (16, 8), placement))
    assert over_white.mask is None and np.all(over_white.pixels == 1)


def test_colours_are_shifted_after_the_image_was_placed(tmp_path: Path) -> None:
    Image.new("RGB", (16, 8), (51, 102, 204)).save(tmp_path / "a.png")
    key = _key(tmp_path / "a.png", (16, 8), Placement((8, 8), (16, 8), (4, 0)))
    expected = [2 * round(255 * (value / 255) ** 1.05) / 255 - 1 for value in (51, 102, 204)]
    pixels = load_image(key, ColourShift(gamma=1.05)).pixels
    np.testing.assert_allclose(pixels, np.broadcast_to(np.reshape(expected, (3, 1, 1)), (3, 8, 8)), atol=1e-6)


def test_pixels_are_scaled_to_minus_one_and_one() -> None:
    pixels = to_pixels(np.array([[[0, 51, 255]]], np.uint8))
    assert pixels.shape == (3, 1, 1) and pixels.dtype == np.float32
    np.testing.assert_allclose(pixels.ravel(), [-1, -0.6, 1], atol=1e-6)


def test_a_truncated_image_is_named(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "a.webp", "a.bmp"):
        path = save_image(tmp_path / name, (64, 48))
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        with pytest.raises(UserError, match=name):
            decode_image(str(path))


def test_a_image_of_absurd_size_is_named(tmp_path: Path) -> None:
    # header of a PNG of 60000 x 60000 pixels
    path = save_image(tmp_path / "bomb.png", (8, 8))
    content = bytearray(path.read_bytes())
    content[16:24] = (60000).to_bytes(4, "big") * 2
    import zlib

    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match="bomb.png cannot be read: it has more than"):
        read_size(str(path))


def _blocks_of_one_colour(path: Path, **options) -> np.ndarray:
    """A JPEG of 64x32 in blocks of 8x8, each of one grey; gives these, (4, 8)."""
    greys = np.random.default_rng(0).integers(20, 230, (4, 8), dtype=np.uint8)
    Image.fromarray(greys.repeat(8, 0).repeat(8, 1)).save(path, quality=100, **options)
    return greys


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_is_decoded_at_the_scale_that_is_still_large_enough(tmp_path: Path, orientation: int) -> None:
    """At 1/8 of its size each block of the DCT gives one pixel, its mean."""
    exif = Image.Exif()
    exif[0x0112] = orientation  # 6: turned right to be shown
    greys = _blocks_of_one_colour(tmp_path / "a.jpg", exif=exif)
    upright = np.rot90(greys, -1) if orientation == 6 else greys
    for times, decoded_times in ((1, 1), (2, 2), (3, 4), (5, 8)):  # of the size of 1/8
        at_least = (upright.shape[1] * times, upright.shape[0] * times)
        decoded = decode_image(str(tmp_path / "a.jpg"), at_least=at_least)[..., 0]
        expected = upright.repeat(decoded_times, 0).repeat(decoded_times, 1)
        assert decoded.shape == expected.shape
        assert np.abs(decoded.astype(int) - expected).max() <= 2


def test_a_scaled_jpeg_is_resized_to_its_place_and_a_changed_one_is_noticed(tmp_path: Path) -> None:
    greys = _blocks_of_one_colour(tmp_path / "a.jpg")
    placement = Placement((8, 4), (8, 4), (0, 0))
    key = _key(tmp_path / "a.jpg", (64, 32), placement, interpolation="jpeg_scaled")
    assert np.abs(load_image(key).pixels[0] - (greys / 127.5 - 1)).max() <= 2 / 127.5
    with pytest.raises(UserError, match=r"has changed: it was 80x40"):
        load_image(_key(tmp_path / "a.jpg", (80, 40), placement, interpolation="jpeg_scaled"))
