"""The device of a test: the CPU, and a GPU where `-m gpu` asks for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.end_to_end.runs import ROOT, copy_images


@pytest.fixture(params=[pytest.param("cpu", id="cpu"), pytest.param("cuda", id="gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return _there(request.param)


@pytest.fixture(params=[pytest.param("cuda", id="gpu", marks=pytest.mark.gpu)])
def gpu(request: pytest.FixtureRequest) -> str:
    """For what the CPU cannot do."""
    return _there(request.param)


def _there(device: str) -> str:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU, or PyTorch is built without CUDA")
    return device


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_images(tmp_path_factory.mktemp("images") / "data", 3)
