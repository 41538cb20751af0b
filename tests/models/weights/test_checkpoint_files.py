"""Files of weights: read without running them, refused with a reason when they are not whole."""

from __future__ import annotations

import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from library.cli.errors import UserError
from library.models.options import ModelOptions
from library.models.registry import load_family
from library.models.weights.checkpoint_files import open_weights

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.float16)}


def assert_holds_tensors(tensors):
    assert set(tensors) == set(TENSORS) and len(tensors) == 2
    for key, expected in TENSORS.items():
        assert tensors[key].dtype == expected.dtype
        assert torch.equal(tensors[key], expected)


def test_safetensors_gives_tensors_and_metadata(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(TENSORS, path, metadata={"modelspec.title": "x"})
    file = open_weights(path)
    assert_holds_tensors(file.tensors)
    assert file.metadata == {"modelspec.title": "x"}
    assert "missing" not in file.tensors
    with pytest.raises(KeyError):
        file.tensors["missing"]


@pytest.fixture
def unmapped(monkeypatch):
    """A drive on which mapping files to memory fails."""

    def refuse(path, **_):
        raise AssertionError(f"{path} was mapped")

    monkeypatch.setattr(np, "memmap", refuse)


def test_safetensors_can_be_read_without_mapping_them(tmp_path, unmapped):
    path = tmp_path / "w.safetensors"
    save_file({**TENSORS, "empty": torch.zeros(0, 3), "one": torch.tensor(7, dtype=torch.int64)}, path)
    tensors = dict(open_weights(path, is_mapped=False).tensors)
    assert tensors.pop("empty").shape == (0, 3) and tensors.pop("one").item() == 7
    assert_holds_tensors(tensors)
    tensors["a"].add_(1)  # memory of its own
    assert torch.equal(open_weights(path, is_mapped=False).tensors["a"], TENSORS["a"])
    with pytest.raises(AssertionError, match="was mapped"):
        open_weights(path).tensors["a"]


@pytest.mark.parametrize("is_mapped", [True, False])
def test_a_file_that_changes_while_it_is_read_is_a_user_error(tmp_path, is_mapped):
    path = tmp_path / "w.safetensors"
    save_file(TENSORS, path)
    tensors = open_weights(path, is_mapped=is_mapped).tensors
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="w.safetensors was changed or removed while it was read"):
        dict(tensors)
    path.unlink()
    with pytest.raises(UserError, match="w.safetensors was changed or removed while it was read"):
        dict(tensors)


@pytest.mark.parametrize("form", ["folder_v1", "file_v1"])
@pytest.mark.parametrize("vae", [None, "folder_v1", "file_v1"])
def test_disable_mmap_load_safetensors_gives_the_same_model_without_mapping(form, vae, request, unmapped):
    path = str(request.getfixturevalue(form))
    other = None if vae is None else str(request.getfixturevalue(vae))
    family = load_family(ModelOptions(path, vae=other, disable_mmap_load_safetensors=True))
    original = request.getfixturevalue("tiny_v1")
    for ours, theirs in ((family.unet, original.unet), (family.vae, original.vae)):
        expected = theirs.state_dict()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in ours.state_dict().items())
    words = {key.removeprefix("text_model."): tensor for key, tensor in original.text_encoder.state_dict().items()}
    found = family.text_encoders[0].text_model.state_dict()
    assert all(torch.equal(tensor, words[key]) for key, tensor in found.items())


@pytest.mark.parametrize("ending", [".ckpt", ".pt", ".bin", ".CKPT"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_pickles_are_read_and_unwrapped(tmp_path, ending, zipped):
    path = tmp_path / f"w{ending}"
    contents = {"state_dict": {**TENSORS, "note": "text"}, "epoch": 3, "global_step": 7}
    torch.save(contents, path, _use_new_zipfile_serialization=zipped)
    assert_holds_tensors(open_weights(path).tensors)


def test_a_pickle_without_the_wrapping_is_read_too(tmp_path):
    torch.save(TENSORS, tmp_path / "w.pt")
    assert_holds_tensors(open_weights(tmp_path / "w.pt").tensors)


def test_a_compressed_pickle_and_tensors_that_share_their_numbers_are_read(tmp_path):
    matrix = torch.arange(20.0).reshape(4, 5)
    contents = {"a": matrix, "b": matrix[1:3].t(), "c": torch.empty(0)}
    torch.save(contents, tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.pt") as plain, zipfile.ZipFile(tmp_path / "c.pt", "w") as compressed:
        for name in plain.namelist():
            compressed.writestr(name, plain.read(name), zipfile.ZIP_DEFLATED)
    for name in ("w.pt", "c.pt"):
        tensors = open_weights(tmp_path / name).tensors
        assert all(torch.equal(tensors[key], contents[key]) for key in contents)


class Malice:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_a_pickle_that_would_run_something_is_refused_and_runs_nothing(tmp_path, zipped):
    path, marker = tmp_path / "w.ckpt", tmp_path / "executed"
    torch.save({"state_dict": TENSORS, "x": Malice(marker)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError) as caught:
        open_weights(path)
    assert not marker.exists()
    assert "w.ckpt is refused" in caught.value.message and "system" in caught.value.message
    assert "\n" not in caught.value.message and ".safetensors" in caught.value.hint


def test_a_bare_malicious_pickle_is_refused_too(tmp_path):
    path, marker = tmp_path / "w.ckpt", tmp_path / "executed"
    path.write_bytes(pickle.dumps(Malice(marker), protocol=2))
    with pytest.raises(UserError):
        open_weights(path)
    assert not marker.exists()


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.01, 0.3, 0.9, 0.9999])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_a_cut_off_file_is_a_user_error_of_one_line(tmp_path, ending, kept, zipped):
    path = tmp_path / f"w{ending}"
    tensors = {f"t{index}": torch.randn(50, 50) for index in range(5)}
    if ending == ".ckpt":
        torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    else:
        save_file(tensors, path)
    contents = path.read_bytes()
    path.write_bytes(contents[: int(len(contents) * kept)])
    with pytest.raises(UserError) as caught:
        open_weights(path)
    assert path.name in caught.value.message and "\n" not in caught.value.message
    assert "refused" not in caught.value.message


@pytest.mark.parametrize("contents", [[1, 2], {"epoch": 1}, {"state_dict": {}}])
def test_a_file_without_tensors_is_called_so(tmp_path, contents):
    torch.save(contents, tmp_path / "w.pt")
    with pytest.raises(UserError, match="holds no tensors"):
        open_weights(tmp_path / "w.pt")


def test_another_format_under_the_ending_of_a_pickle_is_a_user_error(tmp_path):
    path = tmp_path / "w.ckpt"
    path.write_bytes(b"<html>404</html>" * 10)
    with pytest.raises(UserError, match="cannot be read"):
        open_weights(path)
