"""Training on tar shards: the weights of the same images in a folder."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

import train_network
from tests.end_to_end.runs import arguments, assert_same, logged, train

LONG_AGO = 10**9
OF_FOLDER = {"max_train_steps": 4, "flip_aug": True, "shuffle_caption": True}


@pytest.fixture
def shards(data_dir: Path, tmp_path: Path) -> Path:
    """The images of `data_dir` in two shards, in its order."""
    files = sorted((data_dir / "2_shs fox").iterdir())
    for name, part in (("0.tar", files[:4]), ("1.tar", files[4:])):
        path = tmp_path / "shards" / name
        path.parent.mkdir(exist_ok=True)
        with tarfile.open(path, "w") as archive:
            for file in part:
                archive.add(file, file.name)
        os.utime(path, (LONG_AGO, LONG_AGO))
    return tmp_path / "shards"


def of_shards(shards: Path) -> dict:
    return OF_FOLDER | {"train_data_dir": None, "shards": shards / "{0..1}.tar", "dataset_repeats": 2}


def test_shards_train_the_weights_of_the_folder_and_resume_to_the_bit(data_dir, shards, tmp_path) -> None:
    from_folder = train(data_dir, tmp_path / "folder", **OF_FOLDER)
    whole = train(data_dir, tmp_path / "whole", **of_shards(shards), max_data_loader_n_workers=2)
    assert_same(whole, from_folder)
    assert logged(tmp_path / "whole") == logged(tmp_path / "folder")
    train(data_dir, tmp_path / "part", **(of_shards(shards) | {"max_train_steps": 2}), save_state=True)
    state = tmp_path / "part" / "run-state"
    resumed = train(data_dir, tmp_path / "resumed", **of_shards(shards), resume=state, cache_latents_to_disk=True)
    assert_same(resumed, from_folder)
    kept = [f"{number}.tar{ending}" for number in (0, 1) for ending in ("", ".index.json", "_sd_latents.safetensors")]
    assert sorted(path.name for path in shards.iterdir()) == sorted(kept)


def test_the_page_of_a_dataset_shows_the_images_of_shards(data_dir, shards, tmp_path) -> None:
    options = of_shards(shards) | {"debug_dataset": True, "debug_dataset_dir": tmp_path / "page"}
    train_network.train(arguments(data_dir, tmp_path / "none", **options))
    (file,) = (tmp_path / "page").glob("*.html")
    text = file.read_text(encoding="utf-8")
    assert text.count("data:image/") >= 5 and "{0..1}.tar" in text
