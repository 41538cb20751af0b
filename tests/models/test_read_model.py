"""If this fails, a tool that leaves the weights in their files works with other weights than the model's."""

import pytest
import torch
from safetensors.torch import load_file

from library.models.options import ModelOptions
from library.models.registry import load_family, read_model


def modules(family):
    return {"unet": family.unet, "vae": family.vae, "text": family.text_encoders[0]}


@pytest.fixture(params=["folder_v1", "file_v2"])
def model(request):
    return ModelOptions(str(request.getfixturevalue(request.param)))


def test_an_opened_model_has_the_tensors_of_the_loaded_one(model):
    opened, loaded = modules(read_model(model)), modules(load_family(model))
    for part, module in loaded.items():
        unread, expected = opened[part].state_dict(), module.state_dict()
        assert all(parameter.is_meta for parameter in opened[part].parameters())
        assert unread.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(unread[name].to("cpu", tensor.dtype), tensor, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_opened_model_is_saved_as_the_loaded_one(model, tmp_path, dtype):
    """Bit for bit, though its tensors are read only then."""
    for name, family in (("opened", read_model(model)), ("loaded", load_family(model))):
        family.save(tmp_path / f"{name}.safetensors", format="safetensors", dtype=dtype, metadata={})
    assert (tmp_path / "opened.safetensors").read_bytes() == (tmp_path / "loaded.safetensors").read_bytes()
    assert {tensor.dtype for tensor in load_file(tmp_path / "opened.safetensors").values()} == {dtype}
