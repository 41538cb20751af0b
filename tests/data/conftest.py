"""Folders of images and dataset files for the tests of the data room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from library.data.batches.plan import TrainingData
from library.data.config.options import DatasetOptions
from library.data.load_data import load_training_data
from tests.data.image_files import save_image

MakeImages = Callable[..., list[Path]]


@pytest.fixture
def make_images(tmp_path: Path) -> MakeImages:
    """`make_images("folder", 3, size=(64, 64), caption="a cat")` -> paths of 0.png, 1.png, 2.png with captions."""

    def make(folder: str, count: int, *, size=(64, 64), caption: str | None = None) -> list[Path]:
        paths = [save_image(tmp_path / folder / f"{number}.png", size, number) for number in range(count)]
        for path in paths:
            if caption is not None:
                path.with_suffix(".caption").write_text(f"{caption} {path.stem}", encoding="utf-8")
        return paths

    return make


@pytest.fixture
def load_toml(tmp_path: Path) -> Callable[..., TrainingData]:
    """Loads the training data that a TOML text describes; {dir} in it stands for the test's folder."""

    def load(text: str, **options) -> TrainingData:
        file = tmp_path / "data.toml"
        file.write_text(text.replace("{dir}", tmp_path.as_posix()), encoding="utf-8")
        return load_training_data(DatasetOptions(dataset_config=str(file), **options))

    return load
