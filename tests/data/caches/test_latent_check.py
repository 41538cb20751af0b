"""Without these a run trains on outdated latents, or spends hours on making latents anew that were fine."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from library.cli.errors import UserError
from library.data.caches.latent_cache import cache_path, latent_seed, read_latents, renew_times, write_latents
from library.data.caches.latent_check import check_caches
from library.data.records import CachedLatents, LatentKey, Placement
from tests.data.image_files import save_image

PLACEMENT = Placement((64, 64), (64, 64), (0, 0))


def _key(path: Path, **changes) -> LatentKey:
    return LatentKey(str(path), path.name, (64, 64), os.stat(path).st_mtime_ns, PLACEMENT, False, **changes)


@pytest.fixture
def keys(tmp_path: Path) -> list[LatentKey]:
    """Three images in two folders, each in both orientations."""
    paths = [save_image(tmp_path / folder / name, (64, 64)) for folder, name in (("a", "0.png"), ("a", "1.png"),
                                                                                   ("b", "0.png"))]  # fmt: skip
    return [dataclasses.replace(_key(path), flipped=flipped) for path in paths for flipped in (False, True)]


def _write(keys: list[LatentKey], fingerprint: str = "vae") -> None:
    write_latents({key: CachedLatents(np.full((4, 8, 8), index)) for index, key in enumerate(keys)}, fingerprint)


def _missing(keys: list[LatentKey], fingerprint: str | None = "vae") -> list[LatentKey]:
    return check_caches(keys, fingerprint).missing


def test_only_what_is_missing_is_made_in_the_order_given(keys: list[LatentKey]) -> None:
    assert _missing(keys) == keys
    _write(keys)
    assert _missing(keys) == [] and check_caches(keys, "vae").summary() is None
    cache_path(keys[2]).unlink()
    assert _missing(keys) == keys[2:4]
    _write([keys[2]])
    assert _missing(keys) == [keys[3]]  # mirrored images are asked for later than the others


@pytest.mark.parametrize(
    ("change", "fingerprint", "reason"),
    [
        ({}, "other", "3 made with another VAE or precision"),
        ({"interpolation": "area"}, "vae", "made with another size, crop or interpolation"),
        ({"alpha_is_mask": True}, "vae", None),
        ({"placement": Placement((64, 64), (65, 64), (0, 0))}, "vae", "made with another size, crop"),
        ({"placement": Placement((64, 64), (64, 65), (0, 1))}, "vae", "made with another size, crop"),
        ({"placement": Placement((128, 64), (128, 128), (0, 32))}, "vae", None),  # another entry of the same files
    ],
)
def test_latents_made_from_something_else_are_made_anew_and_the_reason_is_said(keys, change, fingerprint, reason):
    _write(keys)
    changed = [dataclasses.replace(key, **change) for key in keys]
    check = check_caches(changed, fingerprint)
    assert check.missing == changed
    assert reason is None or reason in check.summary()
    for key in changed:  # what training would do says the same
        assert read_latents(key, fingerprint) is None


def test_a_image_with_other_content_is_made_anew_even_of_the_same_size(keys: list[LatentKey]) -> None:
    _write(keys)
    path = Path(keys[0].path)
    save_image(path, (64, 64), 9)
    os.utime(path, ns=(0, keys[0].mtime_ns + 10**9))
    changed = [dataclasses.replace(key, mtime_ns=keys[0].mtime_ns + 10**9) for key in keys[:2]]
    check = check_caches([*changed, *keys[2:]], "vae")
    assert check.missing == changed
    assert check.summary() == "re-encoding the cached latents of 1 image: 1 of images that have changed"


def test_a_copied_dataset_keeps_its_latents_and_is_checked_quickly_the_second_time(keys, tmp_path: Path) -> None:
    _write(keys)
    shutil.copytree(tmp_path / "a", tmp_path / "copy", copy_function=shutil.copyfile)
    for number in range(2):
        os.utime(tmp_path / "copy" / f"{number}.png", ns=(0, 10**18))
    copied = [
        dataclasses.replace(key, path=str(tmp_path / "copy" / key.image_key), mtime_ns=10**18) for key in keys[:4]
    ]
    check = check_caches(copied, "vae")
    assert check.missing == [] and sum(map(len, check.copied.values())) == 2
    np.testing.assert_array_equal(read_latents(copied[3], "vae").latents, np.full((4, 8, 8), 3))
    for path, each in check.copied.items():
        renew_times(path, each, "vae")
    for name in ("0.png", "1.png"):
        (tmp_path / "copy" / name).write_bytes(b"")  # no longer looked at: their times are those noted
    check = check_caches(copied, "vae")
    assert check.missing == [] and check.copied == {}
    np.testing.assert_array_equal(read_latents(copied[3], "vae").latents, np.full((4, 8, 8), 3))


def _exact_key(path: Path, **changes) -> LatentKey:
    status = os.stat(path)
    return _key(path, num_bytes=status.st_size, ctime_ns=status.st_ctime_ns, **changes)


def test_an_image_replaced_by_one_of_the_same_size_and_mtime_is_made_anew(tmp_path: Path) -> None:
    path = save_image(tmp_path / "a.bmp", (64, 64), 1)  # a BMP of any content has the same number of bytes
    _write([_exact_key(path)])
    before = os.stat(path)
    save_image(path, (64, 64), 2)
    os.utime(path, ns=(0, before.st_mtime_ns))
    after = _exact_key(path)
    assert (after.num_bytes, after.mtime_ns) == (before.st_size, before.st_mtime_ns)
    check = check_caches([after], "vae")
    assert check.missing == [after] and "of images that have changed" in check.summary()
    assert read_latents(after, "vae") is None


def test_an_image_moved_with_its_mtime_keeps_its_latents_and_its_content_is_read_once(tmp_path: Path) -> None:
    path = save_image(tmp_path / "a.bmp", (64, 64), 1)
    _write([_exact_key(path)])
    os.chmod(path, 0o600)  # a new ctime, as of a copy that keeps mtimes
    key = _exact_key(path)
    check = check_caches([key], "vae")
    assert check.missing == [] and sum(map(len, check.copied.values())) == 1
    for file, each in check.copied.items():
        renew_times(file, each, "vae")
    check = check_caches([key], "vae")
    assert check.missing == [] and check.copied == {}


def test_latents_sampled_with_the_key_of_a_folder_are_not_those_of_a_metadata_file(tmp_path: Path) -> None:
    path = save_image(tmp_path / "sub" / "a.png", (64, 64))
    key = _exact_key(path)
    _write([key])
    other = dataclasses.replace(key, image_key="sub/a.png")
    assert latent_seed(other) != latent_seed(key)
    assert _missing([other]) == [other] and read_latents(other, "vae") is None
    _write([other])
    assert _missing([other]) == [] and _missing([key]) == [key]


def test_a_damaged_file_is_made_anew(keys: list[LatentKey]) -> None:
    _write(keys)
    whole = cache_path(keys[0]).read_bytes()
    for content in (b"", b"not a zip", whole[: len(whole) // 2]):
        cache_path(keys[0]).write_bytes(content)
        check = check_caches(keys, "vae")
        assert check.missing == keys[:2] and "1 corrupt" in check.summary()
    _write(keys[:2])
    assert _missing(keys) == []


def test_files_of_another_program_are_made_anew_unless_they_are_trusted(keys: list[LatentKey]) -> None:
    for index, key in enumerate(keys[:4:2]):
        latents = np.full((4, 8, 8), index, np.float32)
        arrays = {"latents_8x8": latents, "original_size_8x8": [64, 64]}
        if index:
            arrays["latents_flipped_8x8"] = latents
        np.savez(cache_path(key), **arrays)
    check = check_caches(keys, "vae")
    assert check.missing == keys
    assert "2 images" in check.summary() and "2 from another program" in check.summary()
    assert "--skip_cache_check" in check.summary()
    # the first lacks the mirrored latents: both are made, since one file cannot be half trusted
    assert _missing(keys, None) == [*keys[:2], *keys[4:]]
    _write(_missing(keys, None))
    assert _missing(keys, None) == []
    assert all(read_latents(key, None) is not None for key in keys)


def test_trust_goes_by_names_and_not_by_contents(keys: list[LatentKey]) -> None:
    _write(keys, "other")
    os.utime(keys[0].path, ns=(0, 1))
    assert _missing(keys, None) == []
    masked = [dataclasses.replace(key, alpha_is_mask=True) for key in keys]
    assert _missing(masked, None) == masked  # a file without a mask is not the one that is asked for


def test_a_file_that_two_images_may_share_is_not_trusted_by_its_name(tmp_path: Path) -> None:
    png, jpg = (_key(save_image(tmp_path / name, (64, 64))) for name in ("a.png", "a.JPG"))
    np.savez(tmp_path / "a_0064x0064_sd.npz", latents_8x8=np.zeros((4, 8, 8), np.float32))
    assert _missing([png, jpg], None) == [png, jpg]
    _write([png, jpg])
    assert _missing([png, jpg], None) == _missing([png, jpg]) == []
    for index, key in enumerate((png, jpg)):
        assert (read_latents(key, None).latents == index).all() and (read_latents(key, "vae").latents == index).all()


def test_latents_stay_when_a_image_of_the_same_stem_comes_and_goes(tmp_path: Path) -> None:
    key = _key(save_image(tmp_path / "a.png", (64, 64)))
    _write([key])
    twin = _key(save_image(tmp_path / "a.jpg", (64, 64)))
    assert _missing([key, twin]) == [twin]
    assert read_latents(key, "vae") is not None and read_latents(twin, "vae") is None
    _write([key, twin])
    Path(key.path).unlink()
    assert _missing([twin]) == [] and read_latents(twin, "vae") is not None


def test_images_whose_names_run_into_each_other_each_have_a_file(tmp_path: Path) -> None:
    names = ["a.jpg", "a.png", "a.jpg.png", "a.jpg.png.webp", "b.png", "b.png.jpg"]
    keys = [_key(save_image(tmp_path / name, (64, 64))) for name in names]
    assert len({cache_path(key) for key in keys}) == len(keys)
    _write(keys)
    assert _missing(keys) == []
    for fingerprint in ("vae", None):
        assert [read_latents(key, fingerprint).latents[0, 0, 0] for key in keys] == [0, 1, 2, 3, 4, 5]


def test_an_image_whose_name_leaves_no_room_for_an_ending_is_cached(tmp_path: Path) -> None:
    keys = [_key(save_image(tmp_path / ("a" * 250 + f"{number}.png"), (64, 64))) for number in (1, 2)]
    _write(keys)
    assert _missing(keys) == _missing(keys, None) == []
    assert [read_latents(key, "vae").latents[0, 0, 0] for key in keys] == [0, 1]


def test_legacy_npz_are_never_made(tmp_path: Path) -> None:
    key = dataclasses.replace(_key(save_image(tmp_path / "a.png", (64, 64))), legacy_npz_path=str(tmp_path / "a.npz"))
    assert _missing([key]) == _missing([key], None) == []


TEXT = """
[[datasets]]
resolution = 64
[[datasets.subsets]]
image_dir = "{dir}/a"
"""


def test_two_crops_that_would_replace_each_other_are_refused(load_toml, make_images) -> None:
    make_images("a", 1, size=(100, 100), caption="x")
    text = TEXT + "[[datasets]]\nresolution = 100\nenable_bucket = true\nbucket_no_upscale = true\n"
    text += "min_bucket_reso = 64\n[[datasets.subsets]]\nimage_dir = '{dir}/a'\n"
    with pytest.raises(UserError, match="0.png differently for the same bucket size"):
        check_caches(load_toml(text).latent_keys(), "vae")


def test_a_second_start_finds_all_latents_of_the_first(load_toml, make_images) -> None:
    make_images("a", 3, caption="x")
    _write(load_toml(TEXT).latent_keys())
    assert _missing(load_toml(TEXT).latent_keys()) == []
