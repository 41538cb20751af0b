"""Without these, hours of preparing latents are lost, or junk from other files is trained on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from library.cli.errors import UserError, UserErrors
from library.data.caches.latent_cache import read_latents
from library.data.caches.prepared_latents import check_prepared, read_prepared
from library.data.records import LatentKey, Placement

FACTS = {"original_size": np.array([100, 80]), "crop_ltrb": np.array([0, 0, 100, 80])}


@pytest.fixture
def key(tmp_path: Path) -> LatentKey:
    """Of an image that is not there: only its latents are."""
    placement = Placement((72, 56), (72, 58), (0, 1))
    return LatentKey(
        str(tmp_path / "a.b.png"), "a.b.png", (100, 80), 0, placement, False, prepared_path=str(tmp_path / "a.b.npz")
    )


def _latents(number: int, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(number).standard_normal((4, 7, 9)).astype(dtype)


def test_the_older_layout_is_read_with_its_mirrored_twin(key: LatentKey, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.b.npz", latents=_latents(1), **FACTS)
    np.savez(tmp_path / "a.b_flip.npz", latents=_latents(2), **FACTS)
    flipped = dataclasses.replace(key, flipped=True)
    check_prepared([key, flipped])
    for each, number in ((key, 1), (flipped, 2)):
        for cached in (read_prepared(each), read_latents(each, "any vae"), read_latents(each, None)):
            np.testing.assert_array_equal(cached.latents, _latents(number))
            assert cached.latents.dtype == np.float32 and cached.mask is None


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_bare_arrays_and_other_precisions_are_read(key: LatentKey, save, dtype: type) -> None:
    save(key.prepared_path, _latents(3, dtype))
    np.testing.assert_array_equal(read_prepared(key).latents, _latents(3, dtype).astype(np.float32))


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
    np.savez(key.prepared_path, **arrays)
    with pytest.raises(UserError, match=f"a.b.npz.*{reason}"):
        read_prepared(key)


def test_a_damaged_file_is_refused_by_name(key: LatentKey) -> None:
    np.savez(key.prepared_path, latents=_latents(1))
    whole = Path(key.prepared_path).read_bytes()
    with open(key.prepared_path + ".npy", "wb") as file:
        np.save(file, _latents(1))
    bare = Path(key.prepared_path + ".npy").read_bytes()
    for content in (b"", b"junk", whole[:200], whole[:300] + b"x" + whole[301:], bare):
        Path(key.prepared_path).write_bytes(content)
        with pytest.raises(UserError, match="legacy .npz latents .*a.b.npz are corrupt"):
            read_prepared(key)


def test_all_missing_files_are_named_before_training(key: LatentKey) -> None:
    flipped = dataclasses.replace(key, flipped=True)
    np.savez(key.prepared_path, latents=_latents(1))
    with pytest.raises(UserError, match="flip_aug: .* not found: .*a.b_flip.npz"):
        check_prepared([key, flipped])
    with pytest.raises(UserError, match="not found: .*a.b_flip.npz"):
        read_prepared(flipped)
    Path(key.prepared_path).unlink()
    with pytest.raises(UserErrors) as caught:
        check_prepared([key, flipped])
    assert [error.message.split("/")[-1] for error in caught.value.errors] == [
        "a.b.npz", "a.b_flip.npz",
    ]  # fmt: skip


def test_a_mask_that_prepared_latents_cannot_have_is_not_left_out_silently(key: LatentKey) -> None:
    np.savez(key.prepared_path, latents=_latents(1))
    with pytest.raises(UserError, match="alpha_mask: the legacy .npz latents .*a.b.npz have no mask"):
        read_prepared(dataclasses.replace(key, alpha_is_mask=True))
