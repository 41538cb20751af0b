"""Without these, images of a metadata file are lost, their captions change, or its mistakes pass unseen."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from library.cli.errors import UserError
from library.data.caches.latent_cache import latent_seed
from library.data.config.config import SubsetConfig
from library.data.config.options import DatasetOptions
from library.data.load_data import load_training_data
from library.data.records import ImageRecord
from library.data.scan.metadata_file import scan_metadata
from tests.data.image_files import save_image

Scan = Callable[..., list[ImageRecord]]


@pytest.fixture
def scan(tmp_path: Path) -> Scan:
    """`scan({"a": {"caption": "x"}}, enable_wildcard=True)`: the records of that metadata, images in tmp_path/img."""

    def run(entries: Any, *, skip_unreadable: bool = False, **settings) -> list[ImageRecord]:
        file = tmp_path / "meta.json"
        file.write_text(entries if isinstance(entries, str) else json.dumps(entries), encoding="utf-8")
        settings = {"image_dir": str(tmp_path / "img"), "metadata_file": str(file), **settings}
        return scan_metadata(SubsetConfig("datasets[0].subsets[0]", **settings), 0, skip_unreadable=skip_unreadable)

    return run


def _problems(scan: Scan, entries: Any, **settings) -> list[str]:
    with pytest.raises(UserError) as caught:
        scan(entries, **settings)
    return [str(error) for error in getattr(caught.value, "errors", [caught.value])]


@pytest.mark.parametrize(
    ("key", "file", "identity"),
    [
        ("{dir}/img/a.png", "img/a.png", "a.png"),
        ("a.png", "img/a.png", "a.png"),
        ("./a.png", "img/a.png", "a.png"),
        ("a", "img/a.png", "a.png"),
        ("b.with.dots", "img/b.with.dots.JPG", "b.with.dots.JPG"),
        ("b.with.dots.JPG", "img/b.with.dots.JPG", "b.with.dots.JPG"),
        ("sub/猫.webp", "img/sub/猫.webp", "sub/猫.webp"),
        ("sub\\猫.webp", "img/sub/猫.webp", "sub/猫.webp"),
        ("sub/猫", "img/sub/猫.webp", "sub/猫.webp"),
        ("../other/c.png", "other/c.png", "c.png"),
        ("{dir}/other/c", "other/c.png", "c.png"),
        ("img/a.png", "img/a.png", "a.png"),  # counted from the current folder
        ("other/c.png", "other/c.png", "c.png"),
    ],
)
def test_every_way_to_write_a_key_finds_its_image(
    scan: Scan, tmp_path: Path, monkeypatch, key: str, file: str, identity: str
) -> None:
    for name in ("img/a.png", "img/b.with.dots.JPG", "img/sub/猫.webp", "other/c.png"):
        save_image(tmp_path / name, (40, 24))
    monkeypatch.chdir(tmp_path)
    (record,) = scan({key.replace("{dir}", tmp_path.as_posix()): {"caption": "x"}}, num_repeats=3)
    assert os.path.samefile(record.path, tmp_path / file)
    assert (record.key, record.size, record.num_repeats, record.is_reg) == (identity, (40, 24), 3, False)
    assert record.mtime_ns == os.stat(tmp_path / file).st_mtime_ns


@pytest.mark.parametrize("key", ["{dir}/img/a.png", "img/a.png", "img/a"])
def test_without_a_folder_keys_count_from_the_metadata_file(scan: Scan, tmp_path: Path, key: str) -> None:
    save_image(tmp_path / "img" / "a.png", (40, 24))
    (record,) = scan({key.replace("{dir}", tmp_path.as_posix()): {"tags": "x"}}, image_dir=None)
    assert (record.key, record.size) == ("a.png", (40, 24))


def test_a_image_beside_the_folder_comes_before_one_in_the_current_folder(
    scan: Scan, tmp_path: Path, monkeypatch
) -> None:
    save_image(tmp_path / "img" / "sub" / "a.png", (40, 24))
    save_image(tmp_path / "sub" / "a.png", (8, 8))
    monkeypatch.chdir(tmp_path)
    assert scan({"sub/a.png": {"caption": "x"}})[0].size == (40, 24)


def test_a_latent_is_the_same_whichever_way_its_image_is_described(load_toml, make_images, tmp_path: Path) -> None:
    make_images("img", 1, caption="x")
    (tmp_path / "meta.json").write_text('{"0": {"caption": "y"}}')
    data = load_toml(
        "[general]\nresolution = 64\n[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{dir}/img'\n"
        "[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{dir}/img'\nmetadata_file = '{dir}/meta.json'\n"
    )
    keys = [dataset.latent_key(0, False) for dataset in data.datasets]
    assert keys[0] == keys[1] and latent_seed(keys[0]) == latent_seed(keys[1])


def test_a_stem_of_several_images_is_refused_with_their_names(scan: Scan, tmp_path: Path) -> None:
    for name in ("a.png", "a.JPG", "b.png"):
        save_image(tmp_path / "img" / name, (8, 8))
    (tmp_path / "img" / "b.txt").write_text("no image")
    (problem,) = _problems(scan, {"a": {"caption": "x"}, "b": {"caption": "x"}})
    assert '1 key matches several images: "a" (a.JPG, a.png)' in problem and "with their extensions" in problem
    assert [record.key for record in scan({"a.png": {"caption": "x"}})] == ["a.png"]


@pytest.mark.parametrize(
    ("entry", "settings", "caption"),
    [
        ({"caption": "a cat"}, {}, "a cat"),
        ({"tags": "cat, red"}, {}, "cat, red"),
        ({"caption": "a cat", "tags": "cat, red"}, {}, "a cat, cat, red"),
        ({"caption": " a cat \n", "tags": " red "}, {}, "a cat, red"),
        ({"caption": "", "tags": "red"}, {}, "red"),
        ({"caption": "a cat", "tags": ""}, {}, "a cat"),
        ({"caption": None, "tags": "red"}, {}, "red"),
        ({"caption": "a cat", "tags": "cat; red"}, {"caption_separator": ";"}, "a cat; cat; red"),
        ({"caption": "one\r\ntwo", "tags": "red"}, {}, "one, red"),
        ({"caption": "one\n\n two \r\n3", "tags": "red"}, {"enable_wildcard": True}, "one, red\ntwo, red\n3, red"),
        ({"caption": "one\ntwo"}, {"enable_wildcard": True}, "one\ntwo"),
        ({"caption": "猫", "train_resolution": [64, 64], "other_program": [1]}, {}, "猫"),
    ],
)
def test_captions_and_tags_are_joined(scan: Scan, tmp_path: Path, entry: dict, settings: dict, caption: str) -> None:
    save_image(tmp_path / "img" / "a.png", (8, 8))
    assert [record.caption for record in scan({"a": entry}, **settings)] == [caption]


def test_missing_and_empty_captions_are_counted_apart(scan: Scan, tmp_path: Path, caplog) -> None:
    for name in "abcd":
        save_image(tmp_path / "img" / f"{name}.png", (8, 8))
    entries = {"a": {}, "b": {"caption": ""}, "c": {"train_resolution": [64, 64]}, "d": {"caption": "x"}}
    with caplog.at_level(logging.WARNING):
        assert [record.caption for record in scan(entries)] == ["", "", "", "x"]
    (about_missing,) = [each for each in caplog.messages if "neither caption nor tags" in each]
    assert "2 of 4 entries have neither caption nor tags, their caption is empty: a, c;" in about_missing
    assert sum("1 empty caption: b" in each for each in caplog.messages) == 1


def test_wrong_values_are_named_together_by_their_keys(scan: Scan, tmp_path: Path) -> None:
    save_image(tmp_path / "img" / "a.png", (8, 8))
    problems = _problems(
        scan,
        {
            "a": {"tags": 5, "caption": ["x"]},
            "b": "a cat",
            "c": {"caption": "x", "train_resolution": [64]},
            "d": {"caption": "x", "train_resolution": [64, True]},
            "": {"caption": "x"},
            "gone": {"caption": "x"},
        },
    )
    for part in ('"a".tags = 5 is not valid', '"a".caption = ["x"] is not valid', '"b" = "a cat" is not valid'):
        assert sum(part in problem for problem in problems) == 1, (part, problems)
    for part in (
        '"c".train_resolution = [64] ',
        '"d".train_resolution = [64, true] ',
        '"" is not the name of an image',
    ):
        assert sum(part in problem for problem in problems) == 1, (part, problems)
    assert all("meta.json" in problem for problem in problems)
    assert any("gone" in problem and "not found" in problem for problem in problems)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{\n  "a": {"caption": "x",}\n}', "line 2, column"),
        ('{"a": {"caption": "x"}', "line 1, column 23"),
        ("", "line 1, column 1"),
        ('{"a": {}, "a": {"caption": "x"}}', '"a" is there twice'),
        ("{" + "".join(f'"{n}": {{}}, ' for n in range(50_000)) + '"49999": {}}', '"49999" is there twice'),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": {"caption": "\\ud800"}}', "half of a character"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "is not a table"),
        ("{}", "describes no images"),
    ],
)
def test_broken_json_is_named_with_line_and_column(scan: Scan, tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "img").mkdir()
    (problem,) = _problems(scan, text)
    assert named in problem and "datasets[0].subsets[0].metadata_file" in problem and "meta.json" in problem


def test_a_key_that_no_file_can_have_is_named(scan: Scan, tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    assert any("is not the name of an image" in problem for problem in _problems(scan, {"a\0b/c": {"caption": "x"}}))


def test_files_and_folders_that_are_not_there_are_told_apart(scan: Scan, tmp_path: Path) -> None:
    save_image(tmp_path / "img" / "a.png", (8, 8))
    entry = {"a": {"caption": "x"}}
    (problem,) = _problems(scan, entry, image_dir=str(tmp_path / "nowhere"))
    assert "datasets[0].subsets[0].image_dir" in problem and "nowhere does not exist" in problem
    (problem,) = _problems(scan, entry, image_dir=str(tmp_path / "img" / "a.png"))
    assert "a.png is a file" in problem
    (problem,) = _problems(scan, entry, metadata_file=str(tmp_path / "none.json"))
    assert "metadata_file" in problem and "none.json does not exist" in problem
    (problem,) = _problems(scan, entry, metadata_file=str(tmp_path))
    assert "is a folder" in problem


def test_all_images_that_are_gone_stand_in_one_error(scan: Scan, tmp_path: Path) -> None:
    save_image(tmp_path / "img" / "a.png", (8, 8))
    gone = [f"{number}.png" for number in range(300)]
    (problem,) = _problems(scan, {name: {"caption": "x"} for name in ["a", *gone, str(tmp_path / "b.jpg")]})
    assert "301 images not found: 0.png, 1.png," in problem and "199.png and 101 more" in problem
    assert f"searched in {tmp_path / 'img'}" in problem


def test_of_two_entries_of_one_image_the_first_counts(scan: Scan, tmp_path: Path, caplog) -> None:
    save_image(tmp_path / "img" / "a.png", (8, 8))
    with caplog.at_level(logging.WARNING):
        records = scan({"a": {"caption": "first"}, f"{tmp_path.as_posix()}/img/a.png": {}, "a.png": {"caption": "z"}})
    assert [record.caption for record in records] == ["first"]
    assert "skipping 2 duplicate entries" in caplog.text and "a.png (same image as a)" in caplog.text


def test_bad_images_are_named_or_left_out(scan: Scan, tmp_path: Path, caplog) -> None:
    save_image(tmp_path / "img" / "good.png", (8, 8))
    (tmp_path / "img" / "empty.png").write_bytes(b"")
    (tmp_path / "img" / "text.png").write_bytes(b"hello")
    entries = {name: {"caption": "x"} for name in ("empty", "text", "good")}
    problems = _problems(scan, entries)
    assert len(problems) == 2 and "empty.png" in problems[0] and "text.png" in problems[1]
    with caplog.at_level(logging.WARNING):
        assert [record.key for record in scan(entries, skip_unreadable=True)] == ["good.png"]
    assert "skipping 2 unreadable images" in caplog.text and "empty.png" in caplog.text and "text.png" in caplog.text
    del entries["good"]
    (problem,) = _problems(scan, entries, skip_unreadable=True)
    assert "describes no readable image" in problem


def test_the_size_is_the_one_after_exif_orientation(scan: Scan, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save_image(tmp_path / "img" / "a.jpg", (40, 24), exif=exif.tobytes())
    assert scan({"a": {"caption": "x"}})[0].size == (24, 40)


def test_kept_sizes_are_those_of_the_images(scan: Scan, tmp_path: Path) -> None:
    for name, size in (("a", (40, 24)), ("sub/b", (16, 8))):
        save_image(tmp_path / "img" / f"{name}.png", size)
        os.utime(tmp_path / "img" / f"{name}.png", (1, 1))
    entries = {"sub/b": {"caption": "x"}, "a": {"caption": "y"}}
    plain = scan(entries)
    assert scan(entries, cache_info=True) == plain and scan(entries, cache_info=True) == plain
    save_image(tmp_path / "img" / "a.png", (8, 32))
    assert [record.size for record in scan(entries, cache_info=True)] == [(16, 8), (8, 32)]


def _in_json(tmp_path: Path, entries: Any, **options):
    (tmp_path / "meta.json").write_text(json.dumps(entries))
    options = {"in_json": str(tmp_path / "meta.json"), "resolution": (64, 64), **options}
    return load_training_data(DatasetOptions(**options))


def test_a_metadata_file_on_the_command_line_is_one_dataset(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_image(tmp_path / "img" / f"{name}.png", (64, 64))
    entries = {"a": {"caption": "x"}, "b.png": {"tags": "y"}}
    data = _in_json(
        tmp_path, entries, train_data_dir=str(tmp_path / "img"), dataset_repeats=3, train_batch_size=2, flip_aug=True
    )
    (dataset,) = data.datasets
    assert [record.caption for record in dataset.records] == ["x", "y"]
    assert (data.num_items, data.num_train_images, dataset.config.batch_size) == (6, 6, 2)
    assert dataset.config.subsets[0].flip_aug and dataset.subset_summaries[0].config.folder_name == "meta.json"


def test_full_paths_need_no_train_data_dir(tmp_path: Path) -> None:
    path = save_image(tmp_path / "img" / "a.png", (64, 64))
    assert _in_json(tmp_path, {str(path): {"caption": "x"}}).num_items == 1
    with pytest.raises(UserError) as caught:
        _in_json(tmp_path, {"a": {"caption": "x"}})
    assert "--in_json" in caught.value.message and "a (searched in" in caught.value.message
    assert "--train_data_dir" in caught.value.hint


def test_in_json_mistakes_name_flags(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--train_data_dir .*nowhere does not exist"):
        _in_json(tmp_path, {"a": {"caption": "x"}}, train_data_dir=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="--resolution is missing"):
        _in_json(tmp_path, {"a": {"caption": "x"}}, resolution=None)
    with pytest.raises(UserError, match="--in_json .*meta.json describes no images"):
        _in_json(tmp_path, {})


def test_what_in_json_has_no_use_for_is_ignored_with_a_warning(tmp_path: Path, caplog) -> None:
    path = save_image(tmp_path / "a.png", (64, 64))
    save_image(tmp_path / "reg" / "1_cat" / "b.png", (64, 64))
    given = {"reg_data_dir": str(tmp_path / "reg"), "conditioning_data_dir": "nowhere", "alpha_mask": True}
    with caplog.at_level(logging.WARNING):
        data = _in_json(tmp_path, {str(path): {"caption": "x"}}, **given)
    assert (data.num_train_images, data.num_reg_images) == (1, 0)
    assert [each.mask_path for each in data.datasets[0].records] == [None]
    for name in ("--reg_data_dir", "--conditioning_data_dir"):
        assert sum(f"{name} is ignored" in each for each in caplog.messages) == 1


def test_a_metadata_file_without_entries_is_left_out_beside_others(load_toml, make_images, tmp_path, caplog) -> None:
    make_images("img", 2)
    (tmp_path / "none.json").write_text("{}")
    (tmp_path / "meta.json").write_text('{"0": {"caption": "x"}, "1": {"caption": "y"}}')
    subset = "[[datasets.subsets]]\nimage_dir = '{dir}/img'\nmetadata_file = '{dir}/NAME.json'\n"
    text = "[[datasets]]\nresolution = 64\n" + subset.replace("NAME", "none")
    with caplog.at_level(logging.WARNING):
        (dataset,) = load_toml(text + subset.replace("NAME", "meta")).datasets
    assert [record.caption for record in dataset.records] == ["x", "y"]
    assert [subset.key_path for subset in dataset.config.subsets] == ["datasets[0].subsets[1]"]
    assert sum("none.json describes no images, and is skipped" in each for each in caplog.messages) == 1
    with pytest.raises(UserError, match="none.json describes no images"):
        load_toml(text)


def test_in_json_beside_a_dataset_config_is_ignored_with_a_warning(load_toml, make_images, caplog) -> None:
    make_images("a", 1, caption="x")
    with caplog.at_level(logging.WARNING):
        data = load_toml(
            "[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = '{dir}/a'",
            in_json="elsewhere.json", reg_data_dir="reg", dataset_repeats=4,
        )  # fmt: skip
    assert data.num_items == 4  # the flag twin of num_repeats
    assert "--in_json is ignored" in caplog.text and "--reg_data_dir is ignored" in caplog.text


def test_repeats_beside_folders_that_say_their_own_are_ignored_with_a_warning(tmp_path: Path, caplog) -> None:
    save_image(tmp_path / "train" / "2_cat" / "a.png", (64, 64))
    options = DatasetOptions(train_data_dir=str(tmp_path / "train"), resolution=(64, 64), dataset_repeats=5)
    with caplog.at_level(logging.WARNING):
        assert load_training_data(options).num_items == 2
    assert "--dataset_repeats is ignored" in caplog.text
