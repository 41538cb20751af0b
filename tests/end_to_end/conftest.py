"""Every run starts in the checkout, on a few of the quickstart's pictures."""

import pytest

from tests.end_to_end.runs import ROOT, copy_pictures


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def data_dir(tmp_path):
    """A copy of some of the pictures, as `--train_data_dir` wants them."""
    return copy_pictures(tmp_path / "data")
