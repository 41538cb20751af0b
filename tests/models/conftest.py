"""Tiny models, and the files they come in, made once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from library.models.convert import convert
from tests.tiny_models import (
    TinyModel,
    TinySDXL,
    make_tiny,
    make_tiny_sdxl,
    to_stability_layout,
    write_folder,
    write_sdxl_folder,
)


@pytest.fixture(scope="session", params=[False, True], ids=["sd1", "sd2"])
def tiny(request) -> TinyModel:
    """Both generations, one after the other."""
    return make_tiny(request.param)


@pytest.fixture(scope="session")
def tiny_v1() -> TinyModel:
    return make_tiny(False)


@pytest.fixture(scope="session")
def tiny_v2() -> TinyModel:
    return make_tiny(True)


@pytest.fixture(scope="session")
def folder(tiny, tmp_path_factory) -> Path:
    """A Diffusers folder of each generation."""
    return write_folder(tiny, tmp_path_factory.mktemp("folder"))


@pytest.fixture(scope="session")
def folder_v1(tiny_v1, tmp_path_factory) -> Path:
    return write_folder(tiny_v1, tmp_path_factory.mktemp("folder_v1"))


@pytest.fixture(scope="session")
def file_v1(tiny_v1, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("file_v1") / "model.safetensors"
    save_file(to_stability_layout(tiny_v1), path)
    return path


@pytest.fixture(scope="session")
def file_v2(tiny_v2, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("file_v2") / "model.safetensors"
    save_file(to_stability_layout(tiny_v2), path)
    return path


@pytest.fixture(scope="session")
def stability_layout() -> Callable[[TinyModel], dict[str, torch.Tensor]]:
    return to_stability_layout


@pytest.fixture(scope="session")
def folder_writer() -> Callable[..., Path]:
    return write_folder


@pytest.fixture(scope="session")
def tiny_sdxl() -> TinySDXL:
    return make_tiny_sdxl()


@pytest.fixture(scope="session")
def sdxl_folder(tiny_sdxl, tmp_path_factory) -> Path:
    return write_sdxl_folder(tiny_sdxl, tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="session")
def sdxl_file(sdxl_folder, tmp_path_factory) -> Path:
    """A single file that says nothing of its configurations, as published ones."""
    folder = tmp_path_factory.mktemp("sdxl_file")
    convert([str(sdxl_folder), str(folder / "stated.safetensors")])
    save_file(load_file(folder / "stated.safetensors"), folder / "model.safetensors")
    return folder / "model.safetensors"
