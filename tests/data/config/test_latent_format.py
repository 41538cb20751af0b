"""If these fail, a model is trained at sizes that it does not take, or at another one than users expect."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from PIL import Image

from library.cli.errors import UserError
from library.data.config.options import DatasetOptions
from library.data.load_data import load_training_data
from library.data.records import LatentFormat

FORMAT = LatentFormat("_new.npz", granularity=32, usual_resolution=(96, 96))
LIMITS = {"enable_bucket": True, "min_bucket_reso": 32, "max_bucket_reso": 128}


@pytest.fixture
def images(tmp_path: Path) -> str:
    (tmp_path / "1_cat").mkdir()
    Image.new("RGB", (120, 90)).save(tmp_path / "1_cat" / "a.png")
    return str(tmp_path)


def test_the_usual_resolution_is_taken_where_none_is_given(images: str) -> None:
    (dataset,) = load_training_data(DatasetOptions(train_data_dir=images), latents=FORMAT).datasets
    assert dataset.placements[0].bucket == (96, 96)
    (given,) = load_training_data(DatasetOptions(train_data_dir=images, resolution=(64, 64)), latents=FORMAT).datasets
    assert given.placements[0].bucket == (64, 64)
    with pytest.raises(UserError, match="--resolution is missing"):
        load_training_data(DatasetOptions(train_data_dir=images))


def test_the_usual_resolution_is_that_of_dataset_files_without_one(images: str, tmp_path: Path) -> None:
    file = tmp_path / "data.toml"
    file.write_text(f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{images}/1_cat'\nclass_tokens = 'cat'\n")
    (dataset,) = load_training_data(DatasetOptions(dataset_config=str(file)), latents=FORMAT).datasets
    assert dataset.placements[0].bucket == (96, 96)


@pytest.mark.parametrize("steps", [8, 16, 32])
def test_smaller_steps_become_those_that_the_model_needs(images: str, caplog, steps: int) -> None:
    options = DatasetOptions(train_data_dir=images, **LIMITS, bucket_reso_steps=steps)
    caplog.set_level(logging.WARNING)
    (dataset,) = load_training_data(options, latents=FORMAT).datasets
    assert all(side % 32 == 0 for side in dataset.placements[0].bucket)
    assert dataset.latent_key(0, False).cache_ending == "_new.npz"
    assert (f"--bucket_reso_steps {steps}: using 32" in caplog.text) == (steps < 32)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({**LIMITS, "bucket_reso_steps": 48}, "--bucket_reso_steps 48 is not a multiple of 32"),
        ({"resolution": (80, 96)}, "--resolution 80x96 is not a multiple of 32"),
    ],
)
def test_sides_that_the_model_does_not_take_are_errors(images: str, options: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        load_training_data(DatasetOptions(train_data_dir=images, **options), latents=FORMAT)


def test_a_limit_that_cuts_all_but_squares_is_said(images: str, caplog) -> None:
    for longest, is_said in ((96, True), (192, False)):
        caplog.clear()
        limits = {**LIMITS, "max_bucket_reso": longest, "bucket_reso_steps": 32}
        options = DatasetOptions(train_data_dir=images, **limits)
        load_training_data(options, latents=FORMAT)
        assert ("give 192 for their full size" in caplog.text) is is_said
