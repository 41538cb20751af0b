"""Without these a documented spelling of a size is refused, or a missing one found only when training starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from library.cli.options import convert, option_fields
from library.data.config.dataset_file import read_dataset_config
from library.data.config.options import CachingOptions, DatasetOptions, parse_caption_extension, parse_resolution


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
        (512.0, (512, 512)),
        ("512.0", (512, 512)),
        ("512.0,768", (512, 768)),
        ([512.0, 768.0], (512, 768)),
    ],
)
def test_documented_spellings_of_a_resolution(given, size) -> None:
    assert parse_resolution(given) == size


@pytest.mark.parametrize(
    "given", ["", "a", "512x512", "512,", "1,2,3", [], [1, 2, 3], 0, -8, True, 512.5, "512.5", [64, 0.5], None, {}]
)
def test_other_resolutions_are_refused(given) -> None:
    with pytest.raises(ValueError, match="512,768"):
        parse_resolution(given)


@pytest.mark.parametrize(("given", "ending"), [(".txt", ".txt"), ("txt", ".txt"), ("tags.txt", ".tags.txt")])
def test_the_dot_of_a_caption_ending_can_be_left_out(given, ending) -> None:
    assert parse_caption_extension(given) == ending


@pytest.mark.parametrize("given", ["", ".", "..", 3, True])
def test_what_ends_no_file_is_no_caption_ending(given) -> None:
    with pytest.raises(ValueError, match=".txt"):
        parse_caption_extension(given)


@pytest.mark.parametrize("given", [0, "0", 0.0])
def test_latents_are_encoded_one_by_one_where_their_batch_size_is_off(given) -> None:
    (field,) = [field for field in option_fields(CachingOptions) if field.name == "vae_batch_size"]
    assert convert(field, given) == 1
    with pytest.raises(ValueError, match="1 or more"):
        convert(field, -1)


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("caption_extension = ''", "caption_extension", ".caption"),
        ("caption_separator = ''", "caption_separator", ","),
        ("resize_interpolation = 'none'", "resize_interpolation", None),
        ("face_crop_aug_range = false", "face_crop_aug_range", None),
        ("keep_tokens = 2.0", "keep_tokens", 2),
        ("flip_aug = 1", "flip_aug", True),
        # texts of one's own may be these words
        ("class_tokens = 'none'", "class_tokens", "none"),
        ("caption_prefix = 'None'", "caption_prefix", "None"),
        ("caption_suffix = 'null'", "caption_suffix", "null"),
    ],
)
def test_keys_are_read_as_other_programs_write_them(tmp_path: Path, line: str, key: str, value) -> None:
    file = tmp_path / "data.toml"
    file.write_text(f"[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = 'a'\n{line}\n")
    (dataset,), problems = read_dataset_config(DatasetOptions(dataset_config=str(file)))
    assert not problems and getattr(dataset.subsets[0], key) == value


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (DatasetOptions(), "no training data"),
        (DatasetOptions(reg_data_dir="x", resolution=(64, 64)), "no training data"),
        (
            DatasetOptions(train_data_dir="x", resolution=(64, 64), conditioning_data_dir="y", alpha_mask=True),
            "--conditioning_data_dir cannot be used with --alpha_mask",
        ),
    ],
)
def test_left_out_options_are_found_without_looking_at_files(options: DatasetOptions, named: str) -> None:
    assert [named in error.message for error in options.check()] == [True]


def test_caching_to_disk_implies_caching() -> None:
    assert CachingOptions(cache_latents_to_disk=True).caches_latents
    assert CachingOptions(cache_latents=True).caches_latents
    assert not CachingOptions().caches_latents


def test_the_ways_to_give_training_data_are_named() -> None:
    """`--shards "$FILES"` with an unset variable gives none."""
    (error,) = DatasetOptions(shards=(), resolution=(64, 64)).check()
    flags = [word for word in (error.hint or "").split() if word.startswith("--")]
    assert flags == ["--dataset_config", "--train_data_dir", "--shards"]
