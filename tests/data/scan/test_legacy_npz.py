"""Without these, latents that were prepared for hours are ignored unseen, or those of other images are trained on."""

from __future__ import annotations

import json
import logging
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from library.cli.errors import UserError
from library.data.batches.plan import TrainingData
from library.data.scan.legacy_npz import original_size
from tests.data.image_files import save_image

TOML = """
[[datasets]]
resolution = 64
[[datasets.subsets]]
image_dir = '{dir}/img'
metadata_file = '{dir}/meta.json'
"""
Load = Callable[..., TrainingData]


def _save(path: Path, **arrays) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """The folder of a.png (100 x 60) and b.png (60 x 100), each with prepared latents made after it."""
    folder = tmp_path / "img"
    for name, size in (("a", (100, 60)), ("b", (60, 100))):
        os.utime(save_image(folder / f"{name}.png", size), (1, 1))
        latents = np.zeros((4, size[1] // 8, size[0] // 8), np.float32)
        _save(folder / f"{name}.npz", latents=latents, original_size=np.array(size), crop_ltrb=np.array([0, 0, 1, 1]))
    return folder


@pytest.fixture
def load(load_toml, tmp_path: Path) -> Load:
    """Loads images a and b by a metadata file; `extra` lines stand in the subset."""

    def run(extra: str = "", names: tuple[str, ...] = ("a", "b"), **changes) -> TrainingData:
        sizes = {"a": [96, 56], "b": [56, 96], **changes}
        entries = {name: {"caption": name, "train_resolution": sizes.get(name.split(".")[0])} for name in names}
        (tmp_path / "meta.json").write_text(json.dumps(entries))
        return load_toml(TOML + extra)

    return run


def _legacy_npz(data: TrainingData) -> list[tuple[str, tuple[int, int]] | None]:
    return [
        record.legacy_npz and (os.path.basename(record.legacy_npz.path), record.legacy_npz.bucket)
        for record in data.datasets[0].records
    ]


@pytest.mark.parametrize("names", [("a", "b"), ("a.png", "b.png")])
def test_legacy_npz_are_used_at_the_size_they_were_made_for(load: Load, images: Path, names, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        data = load(names=names)
    assert _legacy_npz(data) == [("a.npz", (96, 56)), ("b.npz", (56, 96))]
    assert set(data.datasets[0].bucket_counts) == {(96, 56), (56, 96)}
    assert not caplog.records


@pytest.mark.parametrize("names", [("a", "b"), ("a.png", "b.png")])
def test_images_may_be_gone_where_all_latents_are_there(load: Load, images: Path, names) -> None:
    (images / "a.png").unlink()
    data = load(names=names)
    assert _legacy_npz(data) == [("a.npz", (96, 56)), ("b.npz", (56, 96))]
    assert [record.size for record in data.datasets[0].records] == [(100, 60), (60, 100)]


def test_one_image_without_latents_puts_all_of_them_aside(load: Load, images: Path, caplog) -> None:
    (images / "b.npz").unlink()
    with caplog.at_level(logging.WARNING):
        assert _legacy_npz(load()) == [None, None]
    assert "datasets[0]: legacy .npz latents are not used: 1 of 2 images have none (b.png)" in caplog.text
    (images / "a.png").unlink()
    with pytest.raises(UserError, match=r"1 image not found, and their legacy .npz latents cannot be used alone: a"):
        load()


def test_latents_count_only_where_the_metadata_gives_their_size(load: Load, images: Path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        assert _legacy_npz(load(a=None, b=None)) == [None, None]
        assert not caplog.records
        assert _legacy_npz(load(a=None)) == [None, None]
    assert "1 of 2 images have none (a.png)" in caplog.text


def test_images_that_share_a_file_of_latents_are_told(load: Load, images: Path, caplog) -> None:
    os.utime(save_image(images / "a.jpg", (100, 60)), (1, 1))
    with caplog.at_level(logging.WARNING):
        load(names=("a.png", "a.jpg", "b"))
    assert "images with the same name have the same legacy .npz latents" in caplog.text
    assert f"{images / 'a.png'} and {images / 'a.jpg'}; rename" in caplog.text


def test_mirrored_images_need_latents_of_their_own(load: Load, images: Path, caplog) -> None:
    _save(images / "a_flip.npz", latents=np.zeros((4, 7, 12), np.float32))
    with caplog.at_level(logging.WARNING):
        assert _legacy_npz(load("flip_aug = true")) == [None, None]
    assert "1 of 2 images lack those of the flipped image, which flip_aug needs (b.png)" in caplog.text
    _save(images / "b_flip.npz", latents=np.zeros((4, 12, 7), np.float32))
    assert None not in _legacy_npz(load("flip_aug = true"))


def test_images_newer_than_their_latents_are_told(load: Load, images: Path, caplog) -> None:
    later = os.stat(images / "b.npz").st_mtime + 10
    os.utime(images / "b.png", (later, later))
    with caplog.at_level(logging.WARNING):
        assert None not in _legacy_npz(load())
    assert "1 of 2 images are newer than their legacy .npz latents" in caplog.text and "(b.png)" in caplog.text


@pytest.mark.parametrize(
    "line", ["color_aug = true", "random_crop = true", "face_crop_aug_range = [1, 2]", "alpha_mask = true"]
)
def test_what_needs_the_image_is_refused(load: Load, images: Path, line: str) -> None:
    with pytest.raises(UserError) as caught:
        load(line)
    key = line.split()[0]
    assert "legacy .npz latents" in caught.value.message and f"datasets[0].subsets[0].{key}" in caught.value.message


def test_a_size_that_no_latent_has_is_refused(load: Load, images: Path) -> None:
    with pytest.raises(UserError, match="train_resolution of 1 image .* not a multiple of 8: b.png"):
        load(b=[56, 97])


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 cut"])
def test_damaged_latents_of_a_image_that_is_gone_are_named(load: Load, images: Path, content: bytes) -> None:
    (images / "a.png").unlink()
    (images / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"legacy .npz latents .*a\.npz are corrupt"):
        load()


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64, np.uint32, np.float32, np.float64])
def test_the_size_is_read_as_numpy_wrote_it(tmp_path: Path, dtype) -> None:
    _save(tmp_path / "a.npz", original_size=np.array([640, 481], dtype), latents=np.zeros(1))
    np.savez_compressed(tmp_path / "b.npz", original_size=np.array([640, 481], dtype))
    assert original_size(str(tmp_path / "a.npz")) == original_size(str(tmp_path / "b.npz")) == (640, 481)


def test_a_file_that_does_not_tell_the_size_gives_none(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", np.zeros((4, 8, 8)))
    assert original_size(str(tmp_path / "a.npz")) is None


@pytest.mark.parametrize(
    "array",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x01\0" + struct.pack("<H", 9999),
        b"\x93NUMPY\x01\0" + struct.pack("<H", 6) + b"[1][2]",
        b"\x93NUMPY\x01\0" + struct.pack("<H", 17) + b"{'descr': '<i8'}\n" + struct.pack("<q", 64),
        b"\x93NUMPY\x01\0" + struct.pack("<H", 17) + b"{'descr': '|O' }\n" + b"pickle",
        b"\x93NUMPY\x01\0" + struct.pack("<H", 17) + b"{'descr': '<i8'}\n" + struct.pack("<qq", 64, -8),
        b"\x93NUMPY\x01\0" + struct.pack("<H", 17) + b"{'descr': '<f8'}\n" + struct.pack("<dd", 64, float("nan")),
    ],
)
def test_a_size_that_makes_no_sense_is_damage(tmp_path: Path, array: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("original_size.npy", array)
    with pytest.raises(UserError, match=r"a\.npz are corrupt"):
        original_size(str(tmp_path / "a.npz"))
