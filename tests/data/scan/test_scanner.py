"""Without these an image is placed by a wrong size, a sound one is refused, or a bad one is found only in training."""

from __future__ import annotations

import io
import os
import struct
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin

from library.cli.errors import UserError
from library.data.images.decoding import decode_image
from library.data.images.image_files import UnreadableImage
from library.data.images.image_headers import exif_orientation, size_from_head
from library.data.scan.header_scan import Header, read_header, read_headers
from library.data.scan.scan_pool import map_in_chunks
from tests.data.image_files import save_image


def _encoded(kind: str, size: tuple[int, int] = (40, 24), mode: str = "RGB", **options) -> bytes:
    content = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(content, kind, **options)
    return content.getvalue()


def _exif(orientation: int, order: str, thumbnail: bytes = b"") -> bytes:
    """EXIF data by TIFF 6.0, section 2: a maker's name that lies elsewhere, the orientation, and a thumbnail."""
    mark = {"<": b"II*\0", ">": b"MM\0*"}[order]
    maker = b"Cameras & Sons\0"
    first = struct.pack(order + "H", 2)
    first += struct.pack(order + "HHII", 0x010F, 2, len(maker), 8 + 2 + 24 + 4)
    first += struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    second_at = 8 + 2 + 24 + 4 + len(maker) if thumbnail else 0
    data = mark + struct.pack(order + "I", 8) + first + struct.pack(order + "I", second_at) + maker
    if thumbnail:
        at = second_at + 2 + 24 + 4
        data += struct.pack(order + "H", 2)
        data += struct.pack(order + "HHII", 0x0201, 4, 1, at)
        data += struct.pack(order + "HHII", 0x0202, 4, 1, len(thumbnail))
        data += struct.pack(order + "I", 0) + thumbnail
    return data


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _with_chunk(png: bytes, chunk: bytes, before: bytes) -> bytes:
    at = png.index(before) - 4
    return png[:at] + chunk + png[at:]


def _with_segment(jpeg: bytes, marker: int, content: bytes) -> bytes:
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + jpeg[2:]


def _animation() -> bytes:
    content = io.BytesIO()
    frames = [Image.new("RGB", (40, 24), colour) for colour in ("red", "blue")]
    frames[0].save(content, "WEBP", save_all=True, append_images=frames[1:])
    return content.getvalue()


PNG, JPEG, WEBP = _encoded("PNG"), _encoded("JPEG"), _encoded("WEBP")
TEXT = PngImagePlugin.PngInfo()
TEXT.add_text("parameters", "a cat, " * 1500)
LONG_WAY = b"Exif\0\0" + _exif(6, "<").replace(b"\x03\0\x01\0", b"\x04\0\x01\0")  # a number of four bytes
XMP = b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>'

# what is read without Pillow; the others are left to it
QUICK = {
    "png": PNG,
    "grey png": _encoded("PNG", mode="L"),
    "palette png": _encoded("PNG", mode="P"),
    "png with alpha": _encoded("PNG", mode="RGBA"),
    "png with dpi": _encoded("PNG", dpi=(72, 72)),
    "png with long text": _encoded("PNG", pnginfo=TEXT),
    "png with EXIF behind the pixels": _with_chunk(PNG, _chunk(b"eXIf", _exif(6, "<")), b"IEND"),
    "jpeg": JPEG,
    "progressive jpeg": _encoded("JPEG", progressive=True),
    "grey jpeg": _encoded("JPEG", mode="L"),
    "cmyk jpeg": _encoded("JPEG", mode="CMYK"),
    "jpeg with comment": _encoded("JPEG", comment=b"hello"),
    "jpeg with fill bytes": JPEG[:2] + b"\xff\xff\xff" + JPEG[2:],
    "jpeg with harmless XMP": _with_segment(JPEG, 0xE1, XMP.replace(b"tiff", b"exif")),
    "jpeg with long data in front": _with_segment(_with_segment(JPEG, 0xE5, bytes(60_000)), 0xE6, bytes(60_000)),
    "webp": WEBP,
    "lossless webp": _encoded("WEBP", lossless=True),
    "webp with alpha": _encoded("WEBP", mode="RGBA"),
    "webp with profile": _encoded("WEBP", icc_profile=b"x" * 200),
    "animated webp": _animation(),
    "bmp": _encoded("BMP"),
}
SLOW = {
    "gif": _encoded("GIF"),
    "animated png": _encoded("PNG", save_all=True, append_images=[Image.new("RGB", (40, 24))]),
    "16-bit png": _encoded("PNG", mode="I;16"),
    "png with compressed text": _with_chunk(PNG, _chunk(b"zTXt", b"a\0\0" + zlib.compress(b"b")), b"IDAT"),
    "jpeg turned by XMP": _with_segment(JPEG, 0xE1, XMP),
    "jpeg with data of photo editors": _with_segment(JPEG, 0xED, b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\0"),
    "jpeg turned the long way": _encoded("JPEG", exif=LONG_WAY),
    "webp turned": _encoded("WEBP", exif=_exif(6, "<")),
}
TURNED_BY_OTHERS = {"jpeg turned by XMP", "jpeg turned the long way", "webp turned"}


@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_the_size_found_is_that_of_the_decoded_image(tmp_path: Path, name: str) -> None:
    content = {**QUICK, **SLOW}[name]
    path = tmp_path / "image"
    path.write_bytes(content)
    expected = (24, 40) if name in TURNED_BY_OTHERS else (40, 24)
    header = read_header(str(path))
    status = os.stat(path)
    assert header == Header(expected, status.st_mtime_ns, len(content), status.st_ctime_ns)
    assert decode_image(str(path)).shape == (*expected[::-1], 3)
    found = size_from_head(content)
    assert found == (expected if name in QUICK else found)
    if name in TURNED_BY_OTHERS:
        assert found is None


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_counts_however_it_is_written(tmp_path: Path, orientation: int, order: str) -> None:
    thumbnail = _encoded("JPEG", (160, 120))
    exif = _exif(orientation, order, thumbnail)
    assert exif_orientation(exif, len(exif)) == orientation
    files = {
        "a.jpg": _with_segment(JPEG, 0xE1, b"Exif\0\0" + exif),
        "b.jpg": _with_segment(_with_segment(JPEG, 0xE1, b"Exif\0\0" + exif), 0xE0, b"JFIF\0\1\2\0\0\1\0\1\0\0"),
        "a.png": _with_chunk(PNG, _chunk(b"eXIf", exif), b"IDAT"),
        "b.png": _with_chunk(PNG, _chunk(b"eXIf", b"Exif\0\0" + exif), b"IDAT"),
        "a.webp": _encoded("WEBP", exif=exif),
    }
    for name, content in files.items():
        path = tmp_path / name
        path.write_bytes(content)
        expected = (24, 40) if orientation >= 5 else (40, 24)
        with Image.open(path) as image:
            assert ImageOps.exif_transpose(image).size == expected
        assert read_header(str(path)).size == expected
        if name in ("a.jpg", "b.jpg", "a.png"):
            assert size_from_head(content) == expected, "read by Pillow, ten times slower"


def test_data_behind_a_image_do_no_harm(tmp_path: Path) -> None:
    for number, content in enumerate((PNG + b"more", JPEG + bytes(5000), JPEG + b"x" * 200_000, WEBP + b"more")):
        path = tmp_path / f"{number}.png"
        path.write_bytes(content)
        assert read_header(str(path)).size == (40, 24)


BAD = {
    "empty": b"",
    "text": b"hello",
    "only a signature": PNG[:8],
    "header cut": PNG[:20],
    "no pixels": PNG[:33],
    "size 0": PNG[:8] + _chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 24, 8, 2, 0, 0, 0)) + PNG[33:],
    "wrong checksum": PNG[:20] + b"\xff" + PNG[21:],
    "png cut in its pixels": _encoded("PNG", (200, 100))[:-5000],
    "jpeg cut in its header": JPEG[:100],
    "jpeg cut in its pixels": _encoded("JPEG", (200, 100))[:-3000],
    "jpeg of height 0": JPEG.replace(struct.pack(">HH", 24, 40), struct.pack(">HH", 0, 40), 1),
    "large jpeg with thumbnail, cut": _with_segment(
        _encoded("JPEG", (800, 600), quality=98), 0xE1, b"Exif\0\0" + _exif(1, "<", _encoded("JPEG", (160, 120)))
    )[:-100_000],
    "webp cut": _encoded("WEBP", (200, 100))[:-300],
    "webp of unknown chunks": b"RIFF\x10\0\0\0WEBPabcd\4\0\0\0abcd",
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_decoded_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(BAD[name])
    with pytest.raises(UnreadableImage, match="bad.png") as caught:
        read_header(str(path))
    assert caught.value.hint
    with pytest.raises(UserError):
        decode_image(str(path))


def test_a_scan_decodes_no_pixels(tmp_path: Path) -> None:
    """Damage in the middle is found when the image is decoded: a scan that looked for it would take hours."""
    for name, kind in (("a.png", "PNG"), ("a.webp", "WEBP")):
        content = bytearray(_encoded(kind, (200, 100), **({"lossless": True} if kind == "WEBP" else {})))
        middle = len(content) // 2
        content[middle : middle + 2000] = b"\xff" * 2000
        (tmp_path / name).write_bytes(content)
        assert read_header(str(tmp_path / name)).size == (200, 100)
        with pytest.raises(UnreadableImage):
            decode_image(str(tmp_path / name))


def test_missing_files_folders_and_pipes_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    found = read_headers([str(tmp_path / name) for name in ("folder.png", "gone.png", "pipe.png", "null\0.png")])
    for error, reason in zip(found, ("is not a file", "No such file", "is not a file", "cannot be read"), strict=True):
        assert isinstance(error, UnreadableImage) and reason in error.message


# everything but what Pillow finds out only from the pixels
MUTATED = [PNG, JPEG, WEBP, QUICK["png with dpi"], QUICK["webp with alpha"], QUICK["lossless webp"], QUICK["bmp"]]
MUTATED += [_with_segment(JPEG, 0xE1, b"Exif\0\0" + _exif(6, order)) for order in "<>"]
MUTATED += [_with_chunk(PNG, _chunk(b"eXIf", _exif(8, order)), b"IDAT") for order in "<>"]


edits_of_bytes = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=3)


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.sampled_from(MUTATED), edits=edits_of_bytes, num_kept=st.none() | st.integers(0, 1000))
def test_a_size_found_quickly_is_the_one_that_pillow_finds(tmp_path: Path, content: bytes, edits, num_kept) -> None:
    changed = bytearray(content)
    for at, value in edits:
        changed[at % len(changed)] = value
    path = tmp_path / "changed"
    path.write_bytes(changed[:num_kept])
    try:
        size = read_header(str(path)).size
    except UnreadableImage:
        return
    try:
        with Image.open(path) as image:
            sideways = Image.Image.getexif(image).get(0x0112) in (5, 6, 7, 8)
            assert size == (image.size[::-1] if sideways else image.size)
    except OSError:
        # a WebP file is one piece for Pillow: what is wrong behind its header shows when it is decoded
        assert bytes(changed[:4]) == b"RIFF"
        with pytest.raises(UnreadableImage):
            decode_image(str(path))


def _sizes_of_bytes(items: Sequence[bytes]) -> list[int]:
    return [len(item) for item in items]


def _dies_elsewhere(items: Sequence[int]) -> list[int]:
    """Ends the process it runs in, as the system does when memory is short, unless that is the first one."""
    if os.getpid() != items[0]:
        os._exit(9)
    return list(items)


def test_several_processes_find_what_one_finds(tmp_path: Path) -> None:
    paths = [str(save_image(tmp_path / f"{number}.png", (20 + number, 30), number)) for number in range(41)]
    Path(paths[7]).write_bytes(b"")
    one, several = read_headers(paths), read_headers(paths, pool_from=2)
    assert [str(each) for each in several] == [str(each) for each in one]
    assert [each.size for each in several if isinstance(each, Header)] == [(20 + n, 30) for n in range(41) if n != 7]
    assert isinstance(several[7], UnreadableImage) and paths[7] in several[7].message


def test_beside_threads_processes_are_started_anew() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        assert list(map_in_chunks(_sizes_of_bytes, [b"", b"a", b"ab"], pool_from=1)) == [0, 1, 2]
    finally:
        done.set()
        thread.join()


def test_where_processes_die_the_rest_is_done_in_this_one() -> None:
    items = [os.getpid()] * 9
    assert list(map_in_chunks(_dies_elsewhere, items, pool_from=1)) == items
