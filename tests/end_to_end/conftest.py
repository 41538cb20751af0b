"""Every run starts in the checkout, on a few of the quickstart's images."""

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image

from tests.end_to_end.runs import ROOT, copy_images
from tests.tiny_models import TinySDXL, make_tiny_sdxl, write_sdxl_folder


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(autouse=True)
def as_in_a_new_process():
    """`accelerate` keeps the precision of a process's first run: it is neither taken over nor left behind."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def data_dir(tmp_path):
    """A copy of some of the images, as `--train_data_dir` wants them."""
    return copy_images(tmp_path / "data")


@pytest.fixture(scope="session")
def tiny_sdxl() -> TinySDXL:
    return make_tiny_sdxl()


@pytest.fixture(scope="session")
def sdxl_base(tiny_sdxl, tmp_path_factory) -> Path:
    """A Diffusers folder of the tiny Stable Diffusion XL model."""
    return write_sdxl_folder(tiny_sdxl, tmp_path_factory.mktemp("sdxl") / "base")


@pytest.fixture(scope="module")
def sdxl_images(tmp_path_factory) -> Path:
    """Five images, one of which is cut at the top and at the bottom: 32x128."""
    folder = copy_images(tmp_path_factory.mktemp("images") / "data", count=4)
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 200, 3), dtype=np.uint8))
    wide.save(folder / "2_shs fox" / "wide.png")
    (folder / "2_shs fox" / "wide.txt").write_text("a wide one")
    return folder


@pytest.fixture
def spawned() -> Iterator[None]:
    """Processes are spawned, as they are on Windows and macOS: nothing of the main process is there in them."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)
