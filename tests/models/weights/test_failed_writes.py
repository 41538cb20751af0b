"""If these fail, a save that fails ends the run, where the loop goes on after an `OSError`."""

import pytest
import torch
from safetensors.torch import save_file

from library.models.weights.weight_writing import write_errors


@pytest.mark.parametrize("write", [torch.save, save_file])
def test_what_writers_raise_is_one_kind_of_failed_save(tmp_path, write):
    """Neither PyTorch nor safetensors raises an `OSError` of its own, here for a folder that is not there."""
    path = tmp_path / "gone" / "weights"
    with pytest.raises(Exception) as error:  # noqa: PT011 - whatever it is
        write({"w": torch.zeros(2)}, path)
    assert not isinstance(error.value, OSError)
    with pytest.raises(OSError), write_errors():  # noqa: PT011
        write({"w": torch.zeros(2)}, path)
