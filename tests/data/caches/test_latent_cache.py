"""Without these a run trains on latents of another image, crop or VAE, or other programs cannot read the files."""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from library.cli.errors import UserError
from library.data.caches.latent_cache import cache_path, latent_seed, read_latents, write_latents
from library.data.caches.latent_check import check_caches
from library.data.records import CachedLatents, LatentKey, Placement
from tests.data.image_files import save_image


@pytest.fixture
def key(tmp_path: Path) -> LatentKey:
    path = save_image(tmp_path / "a.png", (100, 80))
    placement = Placement((72, 56), (72, 58), (0, 1))
    return LatentKey(str(path), "a.png", (100, 80), path.stat().st_mtime_ns, placement, False)


def _cached(key: LatentKey, value: float = 0) -> CachedLatents:
    return CachedLatents(_latents(key, value))


def _latents(key: LatentKey, value: float = 0) -> np.ndarray:
    width, height = key.placement.bucket
    rng = np.random.default_rng(int(value))
    return rng.standard_normal((4, height // 8, width // 8)).astype(np.float32)


def test_what_is_written_is_read_back_exactly(key: LatentKey) -> None:
    flipped = dataclasses.replace(key, flipped=True)
    assert read_latents(key, "vae") is None
    write_latents({key: _cached(key, 1), flipped: _cached(key, 2)}, "vae")
    np.testing.assert_array_equal(read_latents(key, "vae").latents, _latents(key, 1))
    np.testing.assert_array_equal(read_latents(flipped, "vae").latents, _latents(key, 2))


def test_another_reader_sees_the_documented_file(key: LatentKey, tmp_path: Path) -> None:
    write_latents({key: _cached(key), dataclasses.replace(key, flipped=True): _cached(key, 1)}, "vae")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a_0100x0080_sd.npz"]
    with np.load(tmp_path / "a_0100x0080_sd.npz") as file:
        names = {"latents_7x9", "latents_flipped_7x9", "original_size_7x9", "crop_ltrb_7x9", "made_from.json"}
        assert set(file.files) == names
        assert file["latents_7x9"].shape == file["latents_flipped_7x9"].shape == (4, 7, 9)
        assert file["latents_7x9"].dtype == np.float32
        assert file["original_size_7x9"].tolist() == [100, 80]
        assert file["crop_ltrb_7x9"].tolist() == [1.0, 0.0, 71.0, 56.0]
    with zipfile.ZipFile(tmp_path / "a_0100x0080_sd.npz") as archive:
        facts = json.loads(archive.read("made_from.json"))["7x9"]
    assert (facts["image"], facts["bucket"], facts["crop"], facts["vae"]) == ("a.png", [72, 56], [0, 1], "vae")


def test_sizes_and_orientations_are_added_to_what_is_there(key: LatentKey) -> None:
    flipped = dataclasses.replace(key, flipped=True)
    larger = dataclasses.replace(key, placement=Placement((128, 128), (160, 128), (16, 0)))
    for number, each in enumerate((key, flipped, larger)):
        write_latents({each: _cached(each, number)}, "vae")
    for number, each in enumerate((key, flipped, larger)):
        np.testing.assert_array_equal(read_latents(each, "vae").latents, _latents(each, number))


@pytest.mark.parametrize(
    "change",
    [
        {"interpolation": "area"},
        {"alpha_is_mask": True},
        {"placement": Placement((72, 56), (72, 58), (0, 0))},
        {"placement": Placement((72, 56), (73, 58), (0, 1))},
    ],
)
def test_latents_made_from_something_else_are_not_used(key: LatentKey, change: dict) -> None:
    write_latents({key: _cached(key), dataclasses.replace(key, flipped=True): _cached(key)}, "vae")
    changed = dataclasses.replace(key, **change)
    assert read_latents(changed, "vae") is None
    assert read_latents(key, "another vae") is None
    write_latents({changed: _cached(key, 3)}, "vae")
    np.testing.assert_array_equal(read_latents(changed, "vae").latents, _latents(key, 3))
    # the other orientation was of the old image
    assert read_latents(dataclasses.replace(changed, flipped=True), "vae") is None


def test_a_file_of_another_program_is_made_anew(key: LatentKey) -> None:
    np.savez(cache_path(key), latents_7x9=_latents(key), original_size_7x9=[100, 80], crop_ltrb_7x9=[0, 0, 9, 7])
    assert read_latents(key, "vae") is None
    write_latents({key: _cached(key, 1)}, "vae")
    assert read_latents(key, "vae") is not None


def test_a_damaged_file_is_named_and_never_trained_on(key: LatentKey) -> None:
    write_latents({key: _cached(key)}, "vae")
    whole = cache_path(key).read_bytes()
    flipped_bit = bytearray(whole)
    flipped_bit[len(whole) // 3] ^= 255  # in the latents
    for content in (b"", b"not a zip", whole[: len(whole) // 2], bytes(flipped_bit)):
        cache_path(key).write_bytes(content)
        with pytest.raises(UserError, match="a_0100x0080_sd.npz cannot be used: corrupt file") as caught:
            read_latents(key, "vae")
        assert "delete this file" in caught.value.hint
    write_latents({key: _cached(key, 4)}, "vae")
    np.testing.assert_array_equal(read_latents(key, "vae").latents, _latents(key, 4))


def test_no_damage_of_a_byte_gives_a_traceback_or_other_latents(key: LatentKey) -> None:
    write_latents({key: _cached(key)}, "vae")
    whole = cache_path(key).read_bytes()
    rng = np.random.default_rng(0)
    for place in [*rng.integers(0, len(whole), 200), *range(len(whole) - 500, len(whole))]:
        damaged = bytearray(whole)
        damaged[place] = rng.integers(0, 256)
        cache_path(key).write_bytes(damaged)
        check_caches([key], "vae")
        try:
            latents = read_latents(key, "vae")
        except UserError:
            continue
        if latents is not None:
            np.testing.assert_array_equal(latents.latents, _latents(key))


@pytest.mark.parametrize(
    ("latents", "reason"),
    [
        (np.full((4, 7, 9), np.nan, np.float32), "NaN or inf"),
        (np.zeros((4, 9, 7), np.float32), "4 x 9 x 7, expected channels x 7 x 9"),
        (np.zeros((7, 9), np.float32), "7 x 9, expected channels x 7 x 9"),
        (np.zeros((4, 7, 9), np.int64), "int64"),
    ],
)
def test_latents_that_are_no_numbers_or_of_another_size_are_not_used(key: LatentKey, latents, reason: str) -> None:
    write_latents({key: _cached(key)}, "vae")
    with np.load(cache_path(key)) as file:
        arrays = dict(file)
    np.savez(cache_path(key), **{**arrays, "latents_7x9": latents})
    for fingerprint in ("vae", None):
        with pytest.raises(UserError, match=f"a_0100x0080_sd.npz cannot be used: .*{reason}"):
            read_latents(key, fingerprint)


def test_pickles_are_not_loaded(key: LatentKey) -> None:
    np.savez(cache_path(key), latents_7x9=np.array([{"a": 1}], dtype=object), made_from_7x9=np.array(["x"], object))
    for fingerprint in ("vae", None):
        with pytest.raises(UserError, match="corrupt"):
            read_latents(key, fingerprint)


def test_two_runs_that_cache_one_folder_at_two_sizes_keep_each_others_entries(key: LatentKey) -> None:
    sizes = [Placement((64 + 8 * n, 64), (64 + 8 * n, 64), (0, 0)) for n in range(12)]
    keys = [dataclasses.replace(key, placement=placement) for placement in sizes]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda each: write_latents({each: _cached(each)}, "vae"), keys))
    assert check_caches(keys, "vae").missing == []


def test_a_failed_write_leaves_the_file_as_it_was(key: LatentKey, monkeypatch, tmp_path: Path) -> None:
    write_latents({key: _cached(key)}, "vae")

    def full_disk(file, **arrays) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        write_latents({key: _cached(key, 1)}, "vae")
    np.testing.assert_array_equal(read_latents(key, "vae").latents, _latents(key))
    assert len(list(tmp_path.iterdir())) == 2


def test_images_of_one_stem_do_not_share_a_file(key: LatentKey, tmp_path: Path) -> None:
    path = save_image(tmp_path / "a.jpg", (100, 80))
    other = dataclasses.replace(key, path=str(path), image_key="a.jpg", mtime_ns=path.stat().st_mtime_ns)
    assert cache_path(key).name == "a.png_0100x0080_sd.npz"
    assert cache_path(other).name == "a.jpg_0100x0080_sd.npz"
    write_latents({key: _cached(key, 1), other: _cached(key, 2)}, "vae")
    np.testing.assert_array_equal(read_latents(key, "vae").latents, _latents(key, 1))
    np.testing.assert_array_equal(read_latents(other, "vae").latents, _latents(key, 2))


def test_the_seed_of_a_latent_is_the_same_wherever_the_folder_lies(key: LatentKey) -> None:
    moved = dataclasses.replace(key, path="/elsewhere/a.png", mtime_ns=5)
    assert latent_seed(moved) == latent_seed(key)
    others = [
        dataclasses.replace(key, flipped=True),
        dataclasses.replace(key, image_key="b.png"),
        dataclasses.replace(key, image_size=(101, 80)),
        dataclasses.replace(key, placement=Placement((72, 56), (72, 58), (0, 2))),
    ]
    assert len({latent_seed(each) for each in (key, *others)}) == 5


def test_a_mask_lies_in_the_file_as_documented_and_is_mirrored_with_the_image(key: LatentKey) -> None:
    key = dataclasses.replace(key, alpha_is_mask=True)
    flipped = dataclasses.replace(key, flipped=True)
    mask = np.linspace(0, 1, 63, dtype=np.float32).reshape(7, 9)
    write_latents({flipped: CachedLatents(_latents(key, 2), mask[:, ::-1])}, "vae")
    write_latents({key: CachedLatents(_latents(key, 1), mask)}, "vae")
    with np.load(cache_path(key)) as file:
        assert file["alpha_mask_7x9"].dtype == np.float32
        np.testing.assert_array_equal(file["alpha_mask_7x9"], mask)
    np.testing.assert_array_equal(read_latents(key, "vae").mask, mask)
    np.testing.assert_array_equal(read_latents(flipped, "vae").mask, mask[:, ::-1])


def test_a_image_without_transparency_counts_everywhere(key: LatentKey) -> None:
    key = dataclasses.replace(key, alpha_is_mask=True)
    write_latents({key: _cached(key)}, "vae")
    np.testing.assert_array_equal(read_latents(key, "vae").mask, np.ones((7, 9)))
    assert read_latents(dataclasses.replace(key, alpha_is_mask=False), "vae") is None


def test_trusted_latents_of_another_program_are_read(key: LatentKey) -> None:
    latents = _latents(key)
    np.savez(cache_path(key), latents_7x9=latents, original_size_7x9=[100, 80], crop_ltrb_7x9=[0, 0, 9, 7])
    np.testing.assert_array_equal(read_latents(key, None).latents, latents)
    assert read_latents(dataclasses.replace(key, flipped=True), None) is None


def test_a_file_from_before_contents_were_noted_is_still_used(key: LatentKey) -> None:
    facts = {
        "image": "a.png", "image_size": [100, 80], "mtime_ns": key.mtime_ns, "bucket": [72, 56],
        "resized": [72, 58], "crop": [0, 1], "vae": "vae",
    }  # fmt: skip
    np.savez(cache_path(key), latents_7x9=_latents(key), made_from_7x9=np.array(json.dumps(facts)))
    assert read_latents(key, "vae") is not None and check_caches([key], "vae").missing == []
    assert read_latents(dataclasses.replace(key, mtime_ns=1), "vae") is None
    assert read_latents(dataclasses.replace(key, interpolation="area"), "vae") is None


def test_an_entry_of_an_earlier_version_stays_when_its_file_is_written_again(key: LatentKey) -> None:
    facts = {
        "image": "a.png", "image_size": [100, 80], "mtime_ns": key.mtime_ns, "bucket": [72, 56],
        "resized": [72, 58], "crop": [0, 1], "vae": "vae",
    }  # fmt: skip
    np.savez(cache_path(key), latents_7x9=_latents(key, 5), made_from_7x9=np.array(json.dumps(facts)))
    larger = dataclasses.replace(key, placement=Placement((128, 128), (160, 128), (16, 0)))
    write_latents({larger: _cached(larger, 6)}, "vae")
    assert check_caches([key, larger], "vae").missing == []
    np.testing.assert_array_equal(read_latents(key, "vae").latents, _latents(key, 5))
    with np.load(cache_path(key)) as file:
        assert "made_from_7x9" not in file.files


def test_latents_stay_usable_when_another_program_copies_all_members_into_a_new_file(key: LatentKey) -> None:
    write_latents({key: _cached(key, 1)}, "vae")
    with np.load(cache_path(key)) as file:
        members = dict(file)
    np.savez(cache_path(key), **members, latents_16x16=np.zeros((4, 16, 16), np.float32))
    assert check_caches([key], "vae").missing == []
    np.testing.assert_array_equal(read_latents(key, "vae").latents, _latents(key, 1))


def test_a_image_changed_while_it_was_encoded_is_not_taken_for_the_one_encoded(key: LatentKey) -> None:
    found = key.mtime_ns
    save_image(Path(key.path), (100, 80), 1)
    os.utime(key.path, ns=(0, found + 10**9))
    write_latents({key: _cached(key)}, "vae")  # latents of the old content, written after the change
    assert read_latents(dataclasses.replace(key, mtime_ns=found + 10**9), "vae") is None
