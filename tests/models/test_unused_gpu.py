"""If these fail, a user trains on the CPU beside an idle GPU without a word."""

import os

import pytest
import torch

from library.models.devices import unused_gpu


@pytest.mark.skipif(torch.version.cuda is not None or os.name == "nt", reason="needs a PyTorch without CUDA")
def test_a_gpu_that_this_pytorch_cannot_use_is_one_warning(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    if unused_gpu() is None:  # a machine without the driver
        tool = tmp_path / "nvidia-smi"
        tool.write_text("#!/bin/sh\n")
        tool.chmod(0o755)
    warning = unused_gpu()
    assert "NVIDIA GPU" in warning and "pip install --force-reinstall torch==" in warning and "\n" not in warning
    version = torch.__version__.partition("+")[0]
    assert f"torch=={version} --index-url https://download.pytorch.org/whl/cu" in warning


@pytest.mark.skipif(torch.version.cuda is None, reason="needs a PyTorch with CUDA")
def test_a_pytorch_with_cuda_is_no_warning():
    assert unused_gpu() is None
