"""Without these a dataset file means something else than it says, or its mistakes pass unseen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from library.cli.errors import UserError, UserErrors
from library.data.config import SubsetConfig
from library.data.options import DatasetOptions
from library.data.schema import read_dataset_config


def _read(tmp_path: Path, text: str, **options):
    file = tmp_path / "data.toml"
    file.write_text(text, encoding="utf-8")
    return read_dataset_config(DatasetOptions(dataset_config=str(file), **options))


def _problems(tmp_path: Path, text: str, **options) -> list[str]:
    return [str(error) for error in _read(tmp_path, text, **{"resolution": (64, 64), **options})[1]]


SUBSET = "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\n"


def test_every_key_is_read_where_it_stands(tmp_path: Path) -> None:
    datasets, problems = _read(
        tmp_path,
        """
        [[datasets]]
        resolution = [512, 768]
        batch_size = 3
        enable_bucket = true
        min_bucket_reso = 128
        max_bucket_reso = 2048
        bucket_reso_steps = 32
        bucket_no_upscale = true
        [[datasets.subsets]]
        image_dir = "a"
        num_repeats = 7
        class_tokens = "sks dog"
        is_reg = true
        caption_extension = ".txt"
        shuffle_caption = true
        caption_separator = ";"
        keep_tokens = 2
        flip_aug = true
        """,
    )
    assert not problems
    (dataset,) = datasets
    values = (dataset.resolution, dataset.batch_size, dataset.enable_bucket, dataset.min_bucket_reso)
    assert values == ((512, 768), 3, True, 128)
    assert (dataset.max_bucket_reso, dataset.bucket_reso_steps, dataset.bucket_no_upscale) == (2048, 32, True)
    assert dataset.subsets == (
        SubsetConfig(
            "datasets[0].subsets[0]", "a", num_repeats=7, class_tokens="sks dog", is_reg=True, caption_extension=".txt",
            shuffle_caption=True, caption_separator=";", keep_tokens=2, flip_aug=True,
        ),
    )


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
        (SUBSET + "flip_aug = 1", "datasets[0].subsets[0].flip_aug = 1", "true or false"),
        (SUBSET + "resolution = 64", "datasets[0].subsets[0].resolution stands in the wrong table", "[[datasets]]"),
        (
            "[general]\nimage_dir = 'a'\n" + SUBSET,
            "general.image_dir stands in the wrong table",
            "[[datasets.subsets]]",
        ),
        ("batch_size = 2\n" + SUBSET, "batch_size stands in the wrong table", "[general]"),
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
        class_tokens = 1
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
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"no picture")
    (tmp_path / "data.toml").write_text(
        f"[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = '{(tmp_path / 'pictures').as_posix()}'\n"
        "class_tokens = 'x'"
    )
    program = (
        "import sys\n"
        "from library.cli.errors import UserError\n"
        "from library.data.options import DatasetOptions\n"
        "from library.data.prepare import load_training_data\n"
        "try:\n"
        "    load_training_data(DatasetOptions(dataset_config=sys.argv[1]))\n"
        "except UserError as error:\n"
        "    assert 'a.png' in str(error)\n"
        "    assert not {'torch', 'cv2', 'diffusers', 'numpy'} & set(sys.modules)\n"
        "    print('reported')\n"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", program, str(tmp_path / "data.toml")]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "reported\n", done.stderr


@pytest.mark.parametrize("resolution", ["resolution = '64x64'\n", ""], ids=["wrong", "missing"])
def test_pictures_are_looked_at_beside_a_resolution_that_is_no_use(load_toml, resolution: str) -> None:
    text = f"[[datasets]]\n{resolution}[[datasets.subsets]]\nimage_dir = '{{dir}}/nowhere'\n"
    with pytest.raises(UserErrors) as caught:
        load_toml(text)
    first, second = caught.value.errors
    assert "datasets[0].resolution" in first.message and "nowhere does not exist" in second.message


def test_a_wrong_caption_extension_is_not_reported_as_missing_captions(load_toml, make_pictures) -> None:
    make_pictures("a", 2, caption="a cat")
    text = "[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = '{dir}/a'\ncaption_extension = 'txt'\n"
    with pytest.raises(UserError) as caught:
        load_toml(text)
    assert not isinstance(caught.value, UserErrors) and "caption_extension = 'txt'" in caught.value.message
