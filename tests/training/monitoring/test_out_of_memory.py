"""A GPU that runs out of memory inside a library is answered with what saves memory, as in PyTorch's own errors."""

from __future__ import annotations

import pytest
import torch

import train_network
from library.cli.errors import UserError
from library.cli.parser import parse_options
from library.training.monitoring.out_of_memory import memory_errors

OPTIONS = parse_options(
    ["--pretrained_model_name_or_path", "m", "--train_data_dir", "d", "--resolution", "64", "--output_dir", "o"],
    train_network.OPTION_GROUPS,
    program="x",
    description="x",
)


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "the GPU has not enough memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "the GPU has not"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "the GPU has not enough memory"),
        (RuntimeError("CUDA error: out of memory"), "the GPU has not enough memory"),
        (MemoryError(), "there is not enough memory"),
    ],
)
def test_it_is_told_from_the_words_of_the_libraries(error, where):
    with pytest.raises(UserError, match=where) as caught, memory_errors(OPTIONS):
        raise error
    assert "--cache_latents" in caught.value.hint
    with pytest.raises(RuntimeError, match="size mismatch"), memory_errors(OPTIONS):
        raise RuntimeError("size mismatch")
