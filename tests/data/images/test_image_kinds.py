"""Without these an image of a rarer kind is refused, or trained with other colours than it has."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from library.cli.errors import UserError
from library.data.images.decoding import decode_image, decode_layers
from library.data.images.image_files import IMAGE_ENDINGS, UnreadableImage, read_size
from library.data.images.image_headers import size_from_head
from tests.data.images.hand_made_files import chunk, write_png

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


def _sixteen(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


# a 16-bit value v is the 8-bit value v / 257; readers that take its upper byte are less than one off
HIGH, LOW = 200 * 257, 10 * 257

PNG_KINDS = {
    # name: (bits, colour type, row of an image 2 wide, chunks before the data, colours over white, opacity)
    "16-bit RGB": (16, 2, _sixteen(HIGH, LOW, 0, 0, 65535, HIGH), [], [(200, 10, 0), (0, 255, 200)], None),
    "16-bit RGBA": (
        16, 6, _sixteen(HIGH, LOW, 0, 65535, HIGH, LOW, 0, 0), [], [(200, 10, 0), WHITE], [255, 0],
    ),
    "16-bit grey": (16, 0, _sixteen(HIGH, LOW), [], [(200,) * 3, (10,) * 3], None),
    "16-bit grey with alpha": (16, 4, _sixteen(HIGH, 65535, LOW, 0), [], [(200,) * 3, WHITE], [255, 0]),
    "16-bit grey, one of it transparent": (
        16, 0, _sixteen(HIGH, HIGH + 1), [chunk(b"tRNS", _sixteen(HIGH + 1))], [(200,) * 3, WHITE], [255, 0],
    ),
    "16-bit RGB, one colour transparent": (
        16, 2, _sixteen(HIGH, LOW, 0, LOW, LOW, HIGH), [chunk(b"tRNS", _sixteen(LOW, LOW, HIGH))],
        [(200, 10, 0), WHITE], [255, 0],
    ),
    "8-bit RGB, one colour transparent": (
        8, 2, bytes((200, 10, 0, 9, 9, 9)), [chunk(b"tRNS", _sixteen(9, 9, 9))], [(200, 10, 0), WHITE], [255, 0],
    ),
    "8-bit grey, one of it transparent": (
        8, 0, bytes((200, 9)), [chunk(b"tRNS", _sixteen(9))], [(200,) * 3, WHITE], [255, 0],
    ),
    "4-bit grey, one of it transparent": (4, 0, b"\x1f", [chunk(b"tRNS", _sixteen(15))], [(17,) * 3, WHITE], [255, 0]),
    "2-bit grey, one of it transparent": (2, 0, b"\x60", [chunk(b"tRNS", _sixteen(2))], [(85,) * 3, WHITE], [255, 0]),
    "1-bit grey": (1, 0, b"\x80", [], [WHITE, (0, 0, 0)], None),
    "1-bit grey, one of it transparent": (1, 0, b"\x80", [chunk(b"tRNS", _sixteen(0))], [WHITE, WHITE], [255, 0]),
    "grey with alpha": (8, 4, bytes((200, 255, 9, 0)), [], [(200,) * 3, WHITE], [255, 0]),
    "palette": (8, 3, b"\1\0", [chunk(b"PLTE", bytes((*RED, *GREEN)))], [GREEN, RED], None),
    "palette with transparency": (
        8, 3, b"\1\0", [chunk(b"PLTE", bytes((*RED, *GREEN))), chunk(b"tRNS", b"\x80\0")],
        [WHITE, (255, 127, 127)], [0, 128],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PNG_KINDS)
def test_png_images_of_every_depth(tmp_path: Path, name: str) -> None:
    bits, colour_type, row, chunks, colours, opacity = PNG_KINDS[name]
    path = str(write_png(tmp_path / "a.png", (2, 1), bits, colour_type, [row], *chunks))
    np.testing.assert_allclose(decode_image(path)[0].astype(int), colours, atol=1)
    alpha = decode_layers(path)[1]
    assert (alpha is None) == (opacity is None)
    if opacity is not None:
        np.testing.assert_array_equal(alpha[0], opacity)
    assert read_size(path) == (2, 1)


def test_colours_under_transparency_are_kept_for_masks(tmp_path: Path) -> None:
    Image.fromarray(np.array([[(10, 20, 30, 0), (40, 50, 60, 7)]], np.uint8)).save(tmp_path / "a.png")
    colours, opacity = decode_layers(str(tmp_path / "a.png"))
    np.testing.assert_array_equal(colours, [[(10, 20, 30), (40, 50, 60)]])
    np.testing.assert_array_equal(opacity, [[0, 7]])


@pytest.mark.parametrize(
    ("inks", "colour"),
    [((0, 0, 0, 0), WHITE), ((255, 0, 0, 0), (0, 255, 255)), ((0, 255, 255, 0), RED), ((0, 0, 0, 255), (0, 0, 0))],
)
def test_cmyk_jpegs_are_not_negatives(tmp_path: Path, inks, colour) -> None:
    Image.new("CMYK", (16, 16), inks).save(tmp_path / "a.jpg", quality=100)
    assert b"Adobe" in (tmp_path / "a.jpg").read_bytes()  # such files hold their inks inverted
    assert np.abs(decode_image(str(tmp_path / "a.jpg")).astype(int) - colour).max() <= 2


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_animations_give_their_first_frame(tmp_path: Path, kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, RED)]
    options = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(tmp_path / "a.webp", format=kind, save_all=True, append_images=frames[1:], duration=50, **options)
    np.testing.assert_array_equal(decode_image(str(tmp_path / "a.webp")), np.broadcast_to(RED, (4, 4, 3)))
    assert read_size(str(tmp_path / "a.webp")) == (4, 4)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
@pytest.mark.parametrize("ending", IMAGE_ENDINGS)
def test_the_content_decides_and_not_the_ending(tmp_path: Path, kind: str, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    Image.new("RGB", (6, 4), RED).save(path, format=kind)
    assert read_size(str(path)) == (6, 4)
    assert np.abs(decode_image(str(path)).astype(int) - RED).max() <= 3


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_images(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (24, 16), RED).save(tmp_path / "a.avif", quality=95, exif=exif.tobytes())
    assert read_size(str(tmp_path / "a.avif")) == (16, 24)
    assert np.abs(decode_image(str(tmp_path / "a.avif")).astype(int) - RED).max() <= 6


def test_jpeg_xl_images(tmp_path: Path) -> None:
    pytest.importorskip("pillow_jxl", reason="the plug-in that reads JPEG XL is not installed")
    Image.new("RGB", (24, 16), RED).save(tmp_path / "a.jxl", lossless=True)
    assert read_size(str(tmp_path / "a.jxl")) == (24, 16)
    assert np.all(decode_image(str(tmp_path / "a.jxl")) == RED)


def test_a_missing_reader_is_named_with_what_to_install(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    monkeypatch.setitem(sys.modules, "jxlpy.JXLImagePlugin", None)
    monkeypatch.delitem(Image.OPEN, "JXL", raising=False)
    path = tmp_path / "a.png"
    path.write_bytes(b"\xff\x0a rest of a JPEG XL file")
    for read in (read_size, decode_image):
        with pytest.raises(UserError, match="a.png cannot be read: no reader for JXL") as caught:
            read(str(path))
        assert "pip install pillow-jxl-plugin" in caught.value.hint
        assert not isinstance(caught.value, UnreadableImage)  # the image is good: nothing to go on without


def test_files_that_are_no_images_are_named(tmp_path: Path) -> None:
    for content, reason in ((b"", "the file is empty"), (b"%PDF-1.7 and more", "not an image, or an unknown format")):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(UnreadableImage, match=reason):
            read_size(str(tmp_path / "a.png"))
    with pytest.raises(UnreadableImage, match="No such file"):
        decode_image(str(tmp_path / "gone.png"))


def test_damage_that_readers_report_in_other_ways_is_named_too(tmp_path: Path) -> None:
    whole = write_png(tmp_path / "a.png", (2, 1), 8, 0, [b"ab"]).read_bytes()
    short_header = chunk(b"IHDR", struct.pack(">IIBBBB", 2, 1, 8, 0, 0, 0))
    (tmp_path / "a.png").write_bytes(whole[:8] + short_header + whole[33:])
    for read in (read_size, decode_image):
        with pytest.raises(UnreadableImage, match="a.png cannot be read: corrupt image"):
            read(str(tmp_path / "a.png"))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}),
        ("b.png", {"optimize": True}),
        ("a.jpg", {}),
        ("b.jpg", {"progressive": True, "comment": b"hello"}),
        ("a.webp", {}),
        ("b.webp", {"lossless": True}),
        ("a.bmp", {}),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(1, 1), (300, 17), (40, 5000)])
def test_plain_headers_are_read_without_opening(tmp_path: Path, name: str, options, mode: str, size) -> None:
    Image.new(mode, size).save(tmp_path / name, **options)
    assert size_from_head((tmp_path / name).read_bytes()[:4096]) == size


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
@pytest.mark.parametrize("how", ["exif", "xmp"])
def test_turned_images_are_not_taken_for_plain_ones(tmp_path: Path, name: str, how: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="8"/></x:xmpmeta>'
    options = {"exif": exif.tobytes()} if how == "exif" else {"xmp": xmp}
    if (name, how) == ("a.png", "xmp"):
        from PIL.PngImagePlugin import PngInfo

        text = PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp.decode())
        options = {"pnginfo": text}
    Image.new("RGB", (6, 4)).save(tmp_path / name, **options)
    assert read_size(str(tmp_path / name)) == (4, 6)
    assert decode_image(str(tmp_path / name)).shape == (6, 4, 3)
