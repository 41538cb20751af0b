"""Every run starts in the checkout, on a few of the quickstart's images."""

import pytest
from accelerate.state import AcceleratorState

from tests.end_to_end.runs import ROOT, copy_images


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
