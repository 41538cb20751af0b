"""Without these, hours of preparing latents are lost, or junk from other files is trained on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from library.cli.errors import UserError, UserErrors
from library.data.caches.latent_cache import read_latents
from library.data.caches.legacy_npz_latents import check_legacy_npz, read_legacy_npz
from library.data.records import LatentKey, Placement

FACTS = {"original_size": np.array([100, 80]), "crop_ltrb": np.array([0, 0, 100, 80])}


@pytest.fixture
def key(tmp_path: Path) -> LatentKey:
    """Of an image that is not there: only its latents are."""
    placement = Placement((72, 56), (72, 58), (0, 1))
    return LatentKey(
        str(tmp_path / "a.b.png"), "a.b.png", (100, 80), 0, placement, False, legacy_npz_path=str(tmp_path / "a.b.npz")
    )


def _latents(number: int, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(number).standard_normal((4, 7, 9)).astype(dtype)


def test_the_older_layout_is_read_with_its_mirrored_twin(key: LatentKey, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.b.npz", latents=_latents(1), **FACTS)
    np.savez(tmp_path / "a.b_flip.npz", latents=_latents(2), **FACTS)
    flipped = dataclasses.replace(key, flipped=True)
    check_legacy_npz([key, flipped])
    for each, number in ((key, 1), (flipped, 2)):
        for cached in (read_legacy_npz(each), read_latents(each, "any vae"), read_latents(each, None)):
            np.testing.assert_array_equal(cached.latents, _latents(number))
            assert cached.latents.dtype == np.float32 and cached.mask is None


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_bare_arrays_and_other_precisions_are_read(key: LatentKey, save, dtype: type) -> None:
    save(key.legacy_npz_path, _latents(3, dtype))
    np.testing.assert_array_equal(read_legacy_npz(key).latents, _latents(3, dtype).astype(np.float32))


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"latents": np.zeros((4, 9, 7), np.float32)}, "4 x 9 x 7, expected channels x 7 x 9"),
        ({"latents": np.zeros((1, 4, 7, 9), np.float32)}, "1 x 4 x 7 x 9, expected channels x 7 x 9"),
        ({"latents": np.full((4, 7, 9), np.inf, np.float32)}, "NaN or inf"),
        ({"latents": np.zeros((4, 7, 9), int)}, "int64"),
        ({"latents": np.array([{}], dtype=object)}, "corrupt"),
        (FACTS, "no array `latents`, only original_size, crop_ltrb"),
    ],
)
def test_latents_that_do_not_fit_are_refused_by_name(key: LatentKey, arrays: dict, reason: str) -> None:
    np.savez(key.legacy_npz_path, **arrays)
    with pytest.raises(UserError, match=f"a.b.npz.*{reason}"):
        read_legacy_npz(key)


def test_a_damaged_file_is_refused_by_name(key: LatentKey) -> None:
    np.savez(key.legacy_npz_path, latents=_latents(1))
    whole = Path(key.legacy_npz_path).read_bytes()
    with open(key.legacy_npz_path + ".npy", "wb") as file:
        np.save(file, _latents(1))
    bare = Path(key.legacy_npz_path + ".npy").read_bytes()
    for content in (b"", b"junk", whole[:200], whole[:300] + b"x" + whole[301:], bare):
        Path(key.legacy_npz_path).write_bytes(content)
        with pytest.raises(UserError, match="legacy .npz latents .*a.b.npz are corrupt"):
            read_legacy_npz(key)


def test_all_missing_files_are_named_before_training(key: LatentKey) -> None:
    flipped = dataclasses.replace(key, flipped=True)
    np.savez(key.legacy_npz_path, latents=_latents(1))
    with pytest.raises(UserError, match="flip_aug: .* not found: .*a.b_flip.npz"):
        check_legacy_npz([key, flipped])
    with pytest.raises(UserError, match="not found: .*a.b_flip.npz"):
        read_legacy_npz(flipped)
    Path(key.legacy_npz_path).unlink()
    with pytest.raises(UserErrors) as caught:
        check_legacy_npz([key, flipped])
    assert [error.message.split("/")[-1] for error in caught.value.errors] == [
        "a.b.npz", "a.b_flip.npz",
    ]  # fmt: skip


def test_a_mask_that_legacy_npz_latents_cannot_have_is_not_left_out_silently(key: LatentKey) -> None:
    np.savez(key.legacy_npz_path, latents=_latents(1))
    with pytest.raises(UserError, match="alpha_mask: the legacy .npz latents .*a.b.npz have no mask"):
        read_legacy_npz(dataclasses.replace(key, alpha_is_mask=True))
