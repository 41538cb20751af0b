"""A saved file shows the image that its maker chose, and an image that cannot be read is reported before training."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import ExifTags, Image

from library.cli.errors import UserError
from library.cli.parser import parse_options
from library.models.options import MetadataOptions
from library.models.thumbnail import thumbnail_url
from library.models.weights.modelspec import SpecifiedModel, specification_entries

ROOT = Path(__file__).resolve().parents[2]
RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def parsed(*argv: str) -> MetadataOptions:
    return parse_options(argv, (MetadataOptions,), program="x", description="x")[MetadataOptions]


def shown(url: str) -> Image.Image:
    """The image in a data URL, decoded as RFC 2397 says."""
    front, contents = url.split(",")
    assert front == "data:image/jpeg;base64"
    image = Image.open(io.BytesIO(base64.b64decode(contents)))
    assert image.format == "JPEG" and image.mode == "RGB"
    return image


def assert_colour(image: Image.Image, point: tuple[int, int], colour: tuple[int, int, int]) -> None:
    assert all(abs(found - wanted) < 12 for found, wanted in zip(image.getpixel(point), colour, strict=True))


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
@pytest.mark.parametrize(
    ("size", "expected"),
    [((1024, 512), (256, 128)), ((300, 600), (128, 256)), ((512, 512), (256, 256)), ((64, 32), (64, 32))],
)
def test_a_file_becomes_a_small_jpeg_of_the_same_shape(tmp_path, ending, size, expected):
    image = Image.new("RGB", size, BLUE)
    image.paste(RED, (0, 0, size[0] // 2, size[1]))
    image.save(tmp_path / f"image.{ending}")
    small = shown(thumbnail_url(str(tmp_path / f"image.{ending}")))
    assert small.size == expected
    assert_colour(small, (4, expected[1] // 2), RED)
    assert_colour(small, (expected[0] - 4, expected[1] // 2), BLUE)


def test_what_is_transparent_becomes_white(tmp_path):
    Image.new("RGBA", (40, 40), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert_colour(shown(thumbnail_url(str(tmp_path / "clear.png"))), (20, 20), WHITE)


def test_a_image_that_lies_on_its_side_is_turned(tmp_path):
    image = Image.new("RGB", (200, 100), BLUE)
    image.paste(RED, (0, 0, 100, 100))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # its first row is the right side: turn it clockwise
    image.save(tmp_path / "side.jpg", exif=exif)
    small = shown(thumbnail_url(str(tmp_path / "side.jpg")))
    assert small.size == (100, 200)
    assert_colour(small, (50, 10), RED)


def test_a_data_url_is_kept_as_it_is():
    url = "data:image/jpeg;base64," + base64.b64encode(b"anything").decode()
    assert thumbnail_url(url) == url


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("nowhere.png", "nowhere.png: there is no such file"),
        ("/9j/4AAQSkZJRg" * 1000, "there is no such file"),  # what stands in a data URL, without its beginning
        ("data:image/jpeg;base64,", "is not the data URL of an image"),
        ("data:image/jpeg,abcd", "is not the data URL of an image"),
        ("data:text/plain;base64,YWJj", "is not the data URL of an image"),
        ("data:image/jpeg;base64,abc", "is damaged"),
        ("data:image/jpeg;base64,ab!d", "is damaged"),
        ("data:image/jpeg;base64," + "é" * 1000, "is damaged"),
    ],
)
def test_a_mistake_is_reported_when_options_are_read(value, words):
    with pytest.raises(UserError) as caught:
        parsed("--metadata_thumbnail", value)
    message = caught.value.message
    assert message.startswith("--metadata_thumbnail") and words in message and len(message) < 320


@pytest.mark.parametrize("contents", [b"", b"no image", None])
def test_a_file_that_is_no_whole_image_is_reported_when_options_are_read(tmp_path, contents):
    path = tmp_path / "image.jpg"
    Image.effect_noise((100, 100), 50).save(path)
    path.write_bytes(path.read_bytes()[:300] if contents is None else contents)
    with pytest.raises(UserError) as caught:
        parsed("--metadata_thumbnail", str(path))
    assert "--metadata_thumbnail" in caught.value.message and str(path) in caught.value.message
    assert "JPEG, PNG or WebP" in caught.value.hint


def test_the_image_may_be_gone_when_a_file_is_saved(tmp_path):
    """Saving happens hours later, again and again."""
    path = tmp_path / "image.png"
    Image.new("RGB", (8, 8), RED).save(path)
    options = parsed("--metadata_thumbnail", str(path))
    path.unlink()
    model = SpecifiedModel("stable-diffusion-v1/lora", "epsilon", (512, 512))
    entries = specification_entries(model, options, title="x")
    assert shown(entries["modelspec.thumbnail"]).size == (8, 8)


def test_pillow_is_not_imported_without_a_file():
    code = (
        "import sys; from library.models.options import MetadataOptions;"
        "print(list(MetadataOptions(metadata_thumbnail='data:image/png;base64,YWJj').check()), 'PIL' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] False"
