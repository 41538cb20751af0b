"""Without these a dataset file means something else than it says, or its mistakes pass unseen."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from library.cli.errors import UserError, UserErrors
from library.cli.options import option_fields
from library.data.config.config import DatasetConfig, SubsetConfig
from library.data.config.dataset_file import all_keys, read_dataset_config
from library.data.config.options import CachingOptions, DatasetOptions
from library.data.load_data import load_training_data


def _read(tmp_path: Path, text: str, **options):
    file = tmp_path / "data.toml"
    file.write_text(text, encoding="utf-8")
    return read_dataset_config(DatasetOptions(dataset_config=str(file), **options))


def _problems(tmp_path: Path, text: str, **options) -> list[str]:
    return [str(error) for error in _read(tmp_path, text, **{"resolution": (64, 64), **options})[1]]


SUBSET = "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\n"


# each key: a value as TOML, what it becomes, and one that is not valid
DATASET_KEYS = {
    "resolution": ("[512, 768]", (512, 768), "'wide'"),
    "batch_size": ("3", 3, "0"),
    "enable_bucket": ("true", True, "2"),
    "min_bucket_reso": ("128", 128, "'x'"),
    "max_bucket_reso": ("2048", 2048, "1.5"),
    "bucket_reso_steps": ("32", 32, "0"),
    "bucket_no_upscale": ("true", True, "'yes'"),
    "skip_image_resolution": ("[512, 768.0]", (512, 768), "0"),
}
SUBSET_KEYS = {
    "num_repeats": ("7", 7, "0"),
    "class_tokens": ("'sks dog'", "sks dog", "[1]"),
    "caption_extension": ("'txt'", ".txt", "'.'"),
    "shuffle_caption": ("true", True, "2"),
    "caption_separator": ("';'", ";", "3"),
    "keep_tokens": ("2", 2, "-1"),
    "keep_tokens_separator": ("'|||'", "|||", "true"),
    "secondary_separator": ("';;;'", ";;;", "3"),
    "enable_wildcard": ("true", True, "'x'"),
    "caption_prefix": ("'a photo,'", "a photo,", "[1]"),
    "caption_suffix": ("'sharp'", "sharp", "true"),
    "caption_dropout_rate": ("0.25", 0.25, "1.5"),
    "caption_dropout_every_n_epochs": ("4", 4, "-1"),
    "caption_tag_dropout_rate": ("1", 1.0, "nan"),
    "token_warmup_min": ("0", 0, "-1"),
    "token_warmup_step": ("100", 100.0, "inf"),
    "color_aug": ("true", True, "2"),
    "flip_aug": ("true", True, "-1"),
    "face_crop_aug_range": ("[1.5, 3]", (1.5, 3.0), "[3, 1]"),
    "random_crop": ("true", True, "'no'"),
    "resize_interpolation": ("'area'", "area", "'best'"),
    "alpha_mask": ("true", True, "[2]"),
    "cache_info": ("true", True, "1.5"),
    "validation_split": ("0.2", 0.2, "2"),
    "shard_cache_dir": ("'cache'", "cache", "1"),
    "validation_seed": ("3", 3, "-1"),
    "custom_attributes": (
        "{artist = 'me', year = 2020-01-02, more = {n = [1, 2]}}",
        {"artist": "me", "year": "2020-01-02", "more": {"n": [1, 2]}},
        "'me'",
    ),
}
SUBSET_ONLY_KEYS = {
    "image_dir": ("'a'", "a", "1"),
    "metadata_file": ("'m.json'", "m.json", "1"),
    "conditioning_data_dir": ("'masks'", "masks", "1"),
    "shards": ("['a.tar', 'b.tar']", ("a.tar", "b.tar"), "[1]"),
    "is_reg": ("true", True, "2"),
}
EVERY_KEY = {**DATASET_KEYS, **SUBSET_KEYS, **SUBSET_ONLY_KEYS}


def test_every_key_has_a_case_here() -> None:
    assert set(EVERY_KEY) == set(all_keys())
    config_fields = {field.name for owner in (DatasetConfig, SubsetConfig) for field in dataclasses.fields(owner)}
    assert set(EVERY_KEY) == config_fields - {"key_path", "subsets", "caption_templates", "cache_ending"}  # no keys


def _line(key: str, value: str) -> str:
    return f"{key} = {value}\n"


@pytest.mark.parametrize("key", EVERY_KEY)
def test_every_key_is_read_where_it_stands(tmp_path: Path, key: str) -> None:
    text, value, _ = EVERY_KEY[key]
    dataset_lines = _line(key, text) if key in DATASET_KEYS else ""
    subset_lines = _line(key, text) if key not in DATASET_KEYS else ""
    image_dir = "" if key in ("image_dir", "shards") else "image_dir = 'a'\n"
    (dataset,), problems = _read(
        tmp_path, f"[[datasets]]\n{dataset_lines}[[datasets.subsets]]\n{image_dir}{subset_lines}", resolution=(512, 512)
    )
    assert not problems
    assert getattr(dataset if key in DATASET_KEYS else dataset.subsets[0], key) == value


@pytest.mark.parametrize("key", EVERY_KEY)
def test_every_key_is_checked(tmp_path: Path, key: str) -> None:
    *_, wrong = EVERY_KEY[key]
    if key in DATASET_KEYS:
        text, path = f"[[datasets]]\n{_line(key, wrong)}[[datasets.subsets]]\nimage_dir = 'a'", f"datasets[0].{key}"
    else:
        image_dir = "" if key in ("image_dir", "shards") else "image_dir = 'a'\n"
        text = f"[[datasets]]\n[[datasets.subsets]]\n{image_dir}{_line(key, wrong)}"
        path = f"datasets[0].subsets[0].{key}"
    (problem,) = _problems(tmp_path, text)
    assert f"{path} = " in problem and "is not valid" in problem


@pytest.mark.parametrize("key", [*DATASET_KEYS, *SUBSET_KEYS])
def test_every_key_comes_from_the_innermost_place_that_has_it(tmp_path: Path, key: str) -> None:
    """Subset or dataset, then general, then the flag, then the default."""
    text, value, _ = EVERY_KEY[key]

    def read(toml: str, **flags):
        (dataset,), problems = _read(tmp_path, toml, **{"resolution": (512, 512), **flags})
        assert not problems
        return getattr(dataset if key in DATASET_KEYS else dataset.subsets[0], key)

    assert read(f"[general]\n{_line(key, text)}{SUBSET}") == value
    assert read(SUBSET.replace("[[datasets]]\n", f"[[datasets]]\n{_line(key, text)}")) == value
    flags = {field.spec.toml_key or field.name: field.name for field in option_fields(DatasetOptions)}
    if key in flags:
        assert read(SUBSET, **{flags[key]: value}) == value
    else:
        assert key in ("class_tokens", "custom_attributes")


@pytest.mark.parametrize("key", SUBSET_ONLY_KEYS)
@pytest.mark.parametrize("table", ["[general]\n", "[[datasets]]\n"])
def test_what_names_images_stands_in_subsets_alone(tmp_path: Path, key: str, table: str) -> None:
    subset = "[[datasets.subsets]]\nimage_dir = 'a'\n"
    text = table + _line(key, EVERY_KEY[key][0]) + (subset if table == "[[datasets]]\n" else "[[datasets]]\n" + subset)
    (problem,) = _problems(tmp_path, text)
    assert f"{key} is in the wrong table" in problem and "[[datasets.subsets]]" in problem


def test_values_come_from_the_innermost_table_that_has_them(tmp_path: Path) -> None:
    datasets, problems = _read(
        tmp_path,
        """
        [general]
        resolution = 256
        keep_tokens = 1
        num_repeats = 2
        caption_extension = ".txt"
        [[datasets]]
        keep_tokens = 3
        [[datasets.subsets]]
        image_dir = "a"
        keep_tokens = 4
        [[datasets.subsets]]
        image_dir = "b"
        [[datasets]]
        resolution = 768
        [[datasets.subsets]]
        image_dir = "c"
        num_repeats = 5
        """,
        resolution=(64, 64),
        train_batch_size=6,
        shuffle_caption=True,
        caption_extension=".cap",
    )
    assert not problems
    subsets = [subset for dataset in datasets for subset in dataset.subsets]
    assert [dataset.resolution for dataset in datasets] == [(256, 256), (768, 768)]
    assert [dataset.batch_size for dataset in datasets] == [6, 6]
    assert [(subset.keep_tokens, subset.num_repeats) for subset in subsets] == [(4, 2), (3, 2), (1, 5)]
    assert all(subset.shuffle_caption and subset.caption_extension == ".txt" for subset in subsets)


def test_the_resolution_can_come_from_the_command_line(tmp_path: Path) -> None:
    assert _read(tmp_path, SUBSET, resolution=(64, 96))[0][0].resolution == (64, 96)


@pytest.mark.parametrize(
    ("text", "named", "hint"),
    [
        (SUBSET + "num_repeat = 2", "unknown key datasets[0].subsets[0].num_repeat", "did you mean num_repeats?"),
        (SUBSET + "colour_aug = true", "unknown key datasets[0].subsets[0].colour_aug", ""),
        ("[generall]\n" + SUBSET, "unknown key generall", "did you mean general?"),
        (SUBSET + "num_repeats = 'ten'", "datasets[0].subsets[0].num_repeats = 'ten'", "a whole number"),
        (SUBSET + "num_repeats = true", "datasets[0].subsets[0].num_repeats = True", "a whole number"),
        (SUBSET + "num_repeats = 0", "datasets[0].subsets[0].num_repeats = 0", "1 or more"),
        (SUBSET + 'metadata_file = "a\\u0000b"', "datasets[0].subsets[0].metadata_file = 'a\\x00b'", "a path"),
        (SUBSET + "flip_aug = 2", "datasets[0].subsets[0].flip_aug = 2", "true or false"),
        (SUBSET + "resolution = 64", "datasets[0].subsets[0].resolution is in the wrong table", "[[datasets]]"),
        (
            "[general]\nimage_dir = 'a'\n" + SUBSET,
            "general.image_dir is in the wrong table",
            "[[datasets.subsets]]",
        ),
        ("batch_size = 2\n" + SUBSET, "batch_size is in the wrong table", "[general]"),
        ("[general]\nresolution = 0\n" + SUBSET, "general.resolution = 0", "512,768"),
        ("[general]\nresolution = 60\n" + SUBSET, "datasets[0].resolution 60x60 is not a multiple of 8", ""),
        ("[general]\nenable_bucket = true\n" + SUBSET, "datasets[0].min_bucket_reso 256 is larger than resolution", ""),
        ("general = 3\n" + SUBSET, "general = 3", "a table"),
        ("datasets = 3", "datasets = 3", "[[datasets]]"),
        ("[datasets]\nresolution = 3", "datasets = a table", "[[datasets]]"),
        ("datasets = [3]", "datasets[0] = 3", "a table"),
        ("[[datasets]]\nsubsets = [7]", "datasets[0].subsets[0] = 7", "a table"),
        ("[[datasets]]\nsubsets = 7", "datasets[0].subsets = 7", "[[datasets]]"),
        ("", "it has no [[datasets]]", ""),
        ("[[datasets]]", "datasets[0] has no [[datasets.subsets]]", ""),
        ("[[datasets]]\n[[datasets.subsets]]", "datasets[0].subsets[0].image_dir is missing", ""),
    ],
)
def test_a_mistake_is_named_with_its_key_path(tmp_path: Path, text: str, named: str, hint: str) -> None:
    (problem,) = _problems(tmp_path, text)
    assert named in problem
    assert hint in problem
    assert "data.toml" in problem


def test_a_missing_resolution_is_named(tmp_path: Path) -> None:
    (problem,) = _problems(tmp_path, SUBSET, resolution=None)
    assert "datasets[0].resolution is missing" in problem


def test_all_mistakes_are_reported_together(tmp_path: Path) -> None:
    problems = _problems(
        tmp_path,
        """
        [general]
        keep_token = 1
        resolution = "wide"
        [[datasets]]
        batch_size = 0
        [[datasets.subsets]]
        image_dir = 7
        [[datasets.subsets]]
        class_tokens = true
        num_repeats = -1
        """,
    )
    places = ["general.keep_token", "general.resolution", "datasets[0].batch_size", "subsets[0].image_dir"]
    places += ["subsets[1].image_dir is missing", "subsets[1].class_tokens", "subsets[1].num_repeats"]
    for place in places:
        assert sum(place in problem for problem in problems) == 1, (place, problems)
    assert len(problems) == len(places)


def test_a_syntax_error_has_line_and_column(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 2, column"):
        _read(tmp_path, "[general]\nresolution = = 3\n")


def test_a_wrong_dataset_is_reported_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"no image")
    (tmp_path / "data.toml").write_text(
        f"[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = '{(tmp_path / 'images').as_posix()}'\n"
        "class_tokens = 'x'"
    )
    program = (
        "import sys\n"
        "from library.cli.errors import UserError\n"
        "from library.data.config.options import DatasetOptions\n"
        "from library.data.load_data import load_training_data\n"
        "try:\n"
        "    load_training_data(DatasetOptions(dataset_config=sys.argv[1]))\n"
        "except UserError as error:\n"
        "    assert 'a.png' in str(error)\n"
        "    assert not {'torch', 'cv2', 'diffusers', 'numpy'} & set(sys.modules)\n"
        "    print('reported')\n"
    )
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", program, str(tmp_path / "data.toml")]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "reported\n", done.stderr


@pytest.mark.parametrize("resolution", ["resolution = '64x64'\n", ""], ids=["wrong", "missing"])
def test_images_are_looked_at_beside_a_resolution_that_is_no_use(load_toml, resolution: str) -> None:
    text = f"[[datasets]]\n{resolution}[[datasets.subsets]]\nimage_dir = '{{dir}}/nowhere'\n"
    with pytest.raises(UserErrors) as caught:
        load_toml(text)
    first, second = caught.value.errors
    assert "datasets[0].resolution" in first.message and "nowhere does not exist" in second.message


def test_a_wrong_caption_extension_is_not_reported_as_missing_captions(load_toml, make_images) -> None:
    make_images("a", 2, caption="a cat")
    text = "[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = '{dir}/a'\ncaption_extension = '.'\n"
    with pytest.raises(UserError) as caught:
        load_toml(text)
    assert not isinstance(caught.value, UserErrors) and "caption_extension = '.'" in caught.value.message


METADATA = "[[datasets]]\n[[datasets.subsets]]\nmetadata_file = 'm.json'\n"


def test_a_metadata_file_needs_no_folder(tmp_path: Path) -> None:
    (dataset,), problems = _read(tmp_path, METADATA, resolution=(64, 64))
    assert not problems
    assert dataset.subsets == (SubsetConfig("datasets[0].subsets[0]", metadata_file="m.json"),)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("is_reg = true", "subsets[0].is_reg = true cannot be used with datasets[0].subsets[0].metadata_file"),
        ("class_tokens = 'cat'", "datasets[0].subsets[0].class_tokens cannot be used with"),
        ("caption_extension = '.txt'", "datasets[0].subsets[0].caption_extension cannot be used with"),
    ],
)
def test_what_folders_alone_can_have_is_refused_beside_metadata(tmp_path: Path, line: str, named: str) -> None:
    (problem,) = _problems(tmp_path, METADATA + line)
    assert named in problem
    general = f"[general]\n{line}\n" if "is_reg" not in line else ""
    assert not _problems(tmp_path, general + METADATA)  # a default of folders elsewhere in the file


def test_two_kinds_of_subsets_in_one_dataset_are_refused(tmp_path: Path) -> None:
    subset = "[[datasets.subsets]]\nimage_dir = 'a'\n"
    (problem,) = _problems(tmp_path, METADATA + subset)
    assert "datasets[0] mixes two kinds" in problem
    assert "datasets[0].subsets[0] has metadata_file, datasets[0].subsets[1] not" in problem
    assert not _problems(tmp_path, METADATA + "[[datasets]]\n" + subset)


def test_of_subsets_that_are_the_same_the_first_counts(tmp_path: Path, caplog) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    subsets = [
        f"image_dir = '{tmp_path}/a'\nnum_repeats = 2",
        f"image_dir = '{tmp_path}/a/'",
        f"image_dir = '{tmp_path}/link'",
        f"image_dir = '{tmp_path}/a'\nis_reg = true",
        f"image_dir = '{tmp_path}/b'",
    ]
    with caplog.at_level(logging.WARNING):
        text = "[[datasets]]\n" + "\n".join(f"[[datasets.subsets]]\n{each}" for each in subsets)
        (dataset,), problems = _read(tmp_path, text, resolution=(64, 64))
    assert not problems
    assert [subset.key_path[-2] for subset in dataset.subsets] == ["0", "3", "4"]
    assert dataset.subsets[0].num_repeats == 2
    assert len(caplog.records) == 2
    for number in (1, 2):
        message = caplog.records[number - 1].getMessage()
        assert f"datasets[0].subsets[{number}] is skipped" in message and "of datasets[0].subsets[0]" in message


def test_metadata_subsets_are_the_same_where_file_and_folder_are(tmp_path: Path, caplog) -> None:
    subset = "[[datasets.subsets]]\nmetadata_file = 'm.json'\n"
    with caplog.at_level(logging.WARNING):
        (dataset,), _ = _read(tmp_path, METADATA + subset + subset + "image_dir = 'x'\n", resolution=(64, 64))
    assert [subset.key_path[-2] for subset in dataset.subsets] == ["0", "2"]
    assert "datasets[0].subsets[1] is skipped: its metadata_file m.json" in caplog.text


DOCUMENT = {
    "general": {"shuffle_caption": True},
    "datasets": [{"resolution": [64, 96], "subsets": [{"image_dir": "a", "num_repeats": 3}]}],
}


@pytest.mark.parametrize("name", ["data.json", "data.JSON", "data.toml"])
@pytest.mark.parametrize("start", ["", "\n  ", "\ufeff"])
def test_json_says_the_same_as_toml(tmp_path: Path, name: str, start: str) -> None:
    (tmp_path / name).write_text(start + json.dumps(DOCUMENT), encoding="utf-8")
    (dataset,), problems = read_dataset_config(DatasetOptions(dataset_config=str(tmp_path / name)))
    assert not problems and dataset.resolution == (64, 96)
    assert (dataset.subsets[0].num_repeats, dataset.subsets[0].shuffle_caption) == (3, True)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{\n "datasets": [}\n', "line 2, column 15"),
        ("[]", "not a table"),
        ("resolution = 3", "line 1, column 1"),
        ('{"datasets": [], "datasets": []}', '"datasets" is there twice'),
    ],
)
def test_a_mistake_in_json_has_line_and_column(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(UserError) as caught:
        read_dataset_config(DatasetOptions(dataset_config=str(tmp_path / "data.json")))
    assert named in caught.value.message and "--dataset_config" in caught.value.message


def test_keys_in_json_are_checked_as_in_toml(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text('{"datasets": [{"resolution": 64, "subsets": [{"image_dri": "a"}]}]}')
    _, problems = read_dataset_config(DatasetOptions(dataset_config=str(tmp_path / "data.json")))
    assert "did you mean image_dir?" in str(problems[0])


def test_datasets_of_both_kinds_and_several_sizes_are_one_run(load_toml, make_images, tmp_path: Path) -> None:
    make_images("a", 3, caption="x")
    make_images("b", 2, size=(128, 128))
    (tmp_path / "m.json").write_text('{"0": {"caption": "y"}, "1": {"tags": "z"}}')
    data = load_toml(
        """
        [[datasets]]
        resolution = 64
        batch_size = 2
        [[datasets.subsets]]
        image_dir = '{dir}/a'
        [[datasets]]
        resolution = [128, 64]
        [[datasets.subsets]]
        metadata_file = '{dir}/m.json'
        image_dir = '{dir}/b'
        num_repeats = 5
        """
    )
    assert [set(dataset.bucket_counts.items()) for dataset in data.datasets] == [{((64, 64), 3)}, {((128, 64), 10)}]
    assert (data.num_items, data.num_micro_batches) == (13, 12)


CACHED = "[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = '{dir}/a'\n"


@pytest.mark.parametrize("line", ["color_aug = true", "random_crop = true", "face_crop_aug_range = [1, 2]"])
@pytest.mark.parametrize("flag", ["cache_latents", "cache_latents_to_disk"])
def test_what_caching_rules_out_is_an_error_that_names_both(make_images, tmp_path: Path, line: str, flag) -> None:
    make_images("a", 1, caption="x")
    make_images("b", 1, caption="x")
    file = tmp_path / "data.toml"
    text = CACHED + "[[datasets.subsets]]\nimage_dir = '{dir}/b'\n" + line
    file.write_text(text.replace("{dir}", tmp_path.as_posix()))
    options, key = DatasetOptions(dataset_config=str(file)), line.split()[0]
    assert load_training_data(options, CachingOptions()).num_items == 2
    with pytest.raises(UserError) as caught:
        load_training_data(options, CachingOptions(**{flag: True}))
    assert caught.value.message == f"--{flag} cannot be used with datasets[0].subsets[1].{key}"


def test_what_caching_rules_out_is_named_as_the_flag_it_was_given_by(make_images, tmp_path: Path) -> None:
    make_images("train/2_cat", 1)
    options = DatasetOptions(train_data_dir=str(tmp_path / "train"), resolution=(64, 64), color_aug=True)
    with pytest.raises(UserError, match="^--cache_latents cannot be used with --color_aug\n"):
        load_training_data(options, CachingOptions(cache_latents=True))


@pytest.mark.parametrize("line", ["flip_aug = true", "alpha_mask = true", "resize_interpolation = 'box'"])
def test_caching_goes_with_what_is_the_same_each_time(make_images, tmp_path: Path, line: str) -> None:
    make_images("a", 1, caption="x")
    file = tmp_path / "data.toml"
    file.write_text((CACHED + line).replace("{dir}", tmp_path.as_posix()))
    caching = CachingOptions(cache_latents=True)
    assert load_training_data(DatasetOptions(dataset_config=str(file)), caching).num_items == 1


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ("shuffle_caption = true", "shuffle_caption with --cache_text_encoder_outputs"),
        ("enable_wildcard = true\ntoken_warmup_step = 5", "enable_wildcard and token_warmup_step with"),
    ],
)
def test_captions_that_vary_are_not_cached(tmp_path: Path, make_images, keys: str, named: str) -> None:
    """Said with everything else that is wrong with the data, and without a model."""
    make_images("a", 1, caption="a cat")
    file = tmp_path / "data.toml"
    subset = f'[[datasets.subsets]]\nimage_dir = "{tmp_path / "a"}"\n{keys}\ncolor_aug = true\n'
    file.write_text(f"[[datasets]]\nresolution = 64\n{subset}", encoding="utf-8")
    options = DatasetOptions(dataset_config=str(file))
    load_training_data(options, CachingOptions())
    caching = CachingOptions(cache_text_encoder_outputs=True, cache_latents=True)
    with pytest.raises(UserErrors) as caught:
        load_training_data(options, caching)
    assert len(caught.value.errors) == 2 and named in str(caught.value) and "color_aug" in str(caught.value)


def test_captions_that_vary_are_not_cached_for_validation_either(tmp_path: Path, make_images) -> None:
    make_images("a", 1, caption="a cat")
    make_images("held", 1, caption="a {red|blue} cat")
    file = tmp_path / "data.toml"
    subsets = (f'[[datasets.subsets]]\nimage_dir = "{tmp_path / name}"\n' for name in ("a", "held"))
    varied = "validation_split = 1.0\nenable_wildcard = true\n"
    file.write_text("[[datasets]]\nresolution = 64\n" + "".join(subsets) + varied, encoding="utf-8")
    options = DatasetOptions(dataset_config=str(file))
    assert load_training_data(options, CachingOptions()).validation is not None
    with pytest.raises(UserError, match=r"^datasets\[0\].subsets\[1\]: enable_wildcard with --cache_text_encoder"):
        load_training_data(options, CachingOptions(cache_text_encoder_outputs=True))


def test_a_windows_path_in_double_quotes_is_recognised(tmp_path: Path) -> None:
    """It can be valid TOML, and then holds a tab and a line break in place of backslashes."""
    file = tmp_path / "data.toml"
    file.write_text('[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = "C:\\temp\\new"\n', "utf-8")
    with pytest.raises(UserError) as caught:
        load_training_data(DatasetOptions(dataset_config=str(file)))
    assert r"'C:\temp\new' does not exist" in caught.value.message and "\n" not in caught.value.message
    assert "single quotes" in caught.value.hint
