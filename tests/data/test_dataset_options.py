"""Without these a documented spelling of a size is refused, or a missing one found only when training starts."""

from __future__ import annotations

import pytest

from library.data.options import CachingOptions, DatasetOptions, parse_caption_extension, parse_resolution


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ("512", (512, 512)),
        ("512,768", (512, 768)),
        ("512, 768", (512, 768)),
        (512, (512, 512)),
        ([512, 768], (512, 768)),
        ([640], (640, 640)),
        (["512", "768"], (512, 768)),
    ],
)
def test_documented_spellings_of_a_resolution(given, size) -> None:
    assert parse_resolution(given) == size


@pytest.mark.parametrize("given", ["", "a", "512x512", "512,", "1,2,3", [], [1, 2, 3], 0, -8, True, 512.0, None, {}])
def test_other_resolutions_are_refused(given) -> None:
    with pytest.raises(ValueError, match="512,768"):
        parse_resolution(given)


@pytest.mark.parametrize("given", ["txt", "", ".", 3])
def test_a_caption_ending_starts_with_a_dot(given) -> None:
    with pytest.raises(ValueError, match=".txt"):
        parse_caption_extension(given)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (DatasetOptions(), "no training data"),
        (DatasetOptions(reg_data_dir="x", resolution=(64, 64)), "no training data"),
        (DatasetOptions(train_data_dir="x"), "--resolution is missing"),
    ],
)
def test_left_out_options_are_found_without_looking_at_files(options: DatasetOptions, named: str) -> None:
    assert [named in error.message for error in options.problems()] == [True]


def test_caching_to_disk_implies_caching() -> None:
    assert CachingOptions(cache_latents_to_disk=True).caches_latents
    assert CachingOptions(cache_latents=True).caches_latents
    assert not CachingOptions().caches_latents
