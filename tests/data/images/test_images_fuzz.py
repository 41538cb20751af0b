"""If this fails, one damaged file ends a run with a traceback, or fills the terminal with a library's warnings."""

from __future__ import annotations

import io
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from library.cli.errors import UserError
from library.data.buckets import BucketChooser, BucketSettings
from library.data.images.decoding import load_image
from library.data.images.image_files import read_size
from library.data.records import LatentKey, TrainedImage
from tests.data.images.hand_made_files import SRGB_PRIMARIES, matrix_profile

NUM_EXAMPLES = 400  # for each of the kinds
CHOOSER = BucketChooser(BucketSettings(resolution=(64, 64), enable_bucket=True, min_bucket_reso=64))


def _valid_files() -> dict[str, tuple[bytes, ...]]:
    """A plain file of each kind, and one with all that a header can hold: EXIF, XMP, a profile, transparency."""
    pixels = np.random.default_rng(0).integers(0, 256, (18, 24, 4), dtype=np.uint8)
    plain, rich = Image.fromarray(pixels[..., :3]), Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    extras = {"exif": exif.tobytes(), "icc_profile": matrix_profile(SRGB_PRIMARIES, (0.0, 1.0))}
    xmp = {"xmp": b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="3"/></x:xmpmeta>'}
    return {
        "PNG": (_saved(plain, "PNG"), _saved(rich.quantize(16), "PNG", **extras), _saved(rich, "PNG", **extras)),
        "JPEG": (_saved(plain, "JPEG"), _saved(plain.convert("CMYK"), "JPEG", progressive=True, **extras, **xmp)),
        "WEBP": (_saved(plain, "WEBP"), _saved(rich, "WEBP", lossless=True, **extras, **xmp)),
    }


def _saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


FILES = _valid_files()


@st.composite
def _damaged(draw, kind: str) -> bytes:
    """A valid file after one to four changes; headers, where more can go wrong, are changed most."""
    content = bytearray(draw(st.sampled_from(FILES[kind])))
    for _ in range(draw(st.integers(1, 4))):
        end = draw(st.sampled_from((33, 64, 400, len(content))))
        at = draw(st.integers(0, max(0, min(end, len(content)) - 1)))
        match draw(st.sampled_from(("flip", "set", "number", "insert", "remove", "repeat", "truncate"))):
            case "flip":
                content[at : at + 1] = bytes(byte ^ 1 << draw(st.integers(0, 7)) for byte in content[at : at + 1])
            case "set":
                content[at : at + 1] = bytes((draw(st.integers(0, 255)),))
            case "number":  # a length, a size or an offset that is far too large, or nothing
                number = draw(st.sampled_from((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 0x10000)))
                content[at : at + 4] = number.to_bytes(4, draw(st.sampled_from(("big", "little"))))
            case "insert":
                content[at:at] = draw(st.binary(min_size=1, max_size=16))
            case "remove":
                del content[at : at + draw(st.integers(1, 32))]
            case "repeat":
                content[at:at] = content[at : at + draw(st.integers(1, 64))]
            case "truncate":
                del content[at:]
    return bytes(content) if draw(st.integers(0, 3)) == 3 else _with_checksums(content)


def _with_checksums(content: bytearray) -> bytes:
    """A PNG file whose chunks pass for whole, so that what they say is believed; other kinds have no checksums."""
    at = 8
    while content.startswith(b"\x89PNG") and at + 12 <= len(content):
        end = at + 8 + int.from_bytes(content[at : at + 4], "big")
        content[end : end + 4] = zlib.crc32(content[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(content)


def _load(path: Path) -> TrainedImage | None:
    size = read_size(str(path))
    if max(size) > 4096:
        return None  # too thin or too large to be placed: refused before it is decoded
    return load_image(LatentKey(str(path), "a", size, 0, CHOOSER.assign(size), flipped=False, alpha_is_mask=True))


@pytest.mark.parametrize("kind", FILES)
def test_damaged_images_cause_user_errors_or_load(tmp_path: Path, kind: str, capfd) -> None:
    path = tmp_path / "damaged.png"
    outcomes = {"loaded": 0, "refused": 0}

    @settings(
        max_examples=NUM_EXAMPLES, deadline=None, database=None, derandomize=True, suppress_health_check=HealthCheck
    )
    @given(_damaged(kind))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        try:
            _load(path)
            outcomes["loaded"] += 1
        except UserError as error:
            outcomes["refused"] += 1
            assert "damaged.png" in error.message and "\n" not in error.message and error.hint

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check()
    assert [str(warning.message) for warning in caught] == []
    assert min(outcomes.values()) >= 5, outcomes  # both ways were walked
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", FILES)
def test_the_files_that_are_damaged_are_good_before(tmp_path: Path, kind: str) -> None:
    for content in FILES[kind]:
        (tmp_path / "a.png").write_bytes(content)
        image = _load(tmp_path / "a.png")
        assert image is not None and np.isfinite(image.pixels).all() and np.abs(image.pixels).max() <= 1
