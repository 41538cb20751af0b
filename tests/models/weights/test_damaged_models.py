"""Damaged and foreign model files: each is one `UserError` that names the file, never a crash or a wrong model."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from library.cli.errors import UserError, UserErrors
from library.models.options import ModelOptions
from library.models.registry import load_family

Header = dict


@pytest.fixture(scope="module")
def ckpt_v1(tiny_v1, stability_layout, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("ckpt") / "model.ckpt"
    torch.save({"state_dict": stability_layout(tiny_v1)}, path)
    return path


def _refused(path: Path) -> str:
    with pytest.raises((UserError, UserErrors)) as caught:
        load_family(ModelOptions(str(path)))
    text = str(caught.value)
    assert str(path) in text
    return text


@pytest.mark.parametrize("part", range(20))
@pytest.mark.parametrize("form", ["file_v1", "ckpt_v1"])
def test_a_file_cut_off_anywhere_is_refused(form: str, part: int, request, tmp_path: Path) -> None:
    whole = request.getfixturevalue(form)
    cut = tmp_path / f"cut{whole.suffix}"
    with open(whole, "rb") as file:
        cut.write_bytes(file.read(whole.stat().st_size * part // 20))
    assert len(_refused(cut).splitlines()) == 2


def _change(whole: Path, changed: Path, change: Callable[[Header], None], length: int = 0) -> None:
    """Writes the file with a changed header, and a length of the header that is wrong by `length`."""
    contents = whole.read_bytes()
    (size,) = struct.unpack("<Q", contents[:8])
    header = json.loads(contents[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    changed.write_bytes(struct.pack("<Q", len(text) + length) + text + contents[8 + size :])


KEY = "model.diffusion_model.out.2.weight"


def _set(name: str, value: object) -> Callable[[Header], None]:
    return lambda header: header[KEY].__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "length", "words"),
    [
        (lambda header: None, 5, "its header cannot be read"),
        (lambda header: None, -5, "its header cannot be read"),
        (lambda header: None, 2**40, "are not the length of a header"),
        (_set("dtype", "F33"), 0, f"an unknown data type: {KEY} is F33"),
        (_set("dtype", "F64"), 0, f"contradicts itself at {KEY}"),
        (_set("dtype", None), 0, "an unknown data type"),
        (_set("shape", [4, 32, 3]), 0, f"contradicts itself at {KEY}"),
        (_set("shape", [-4, -32, 3, 3]), 0, "its header cannot be read"),
        (_set("shape", "4x32x3x3"), 0, "its header cannot be read"),
        (_set("data_offsets", [0, 4608]), 0, "contradicts itself"),
        (_set("data_offsets", [4608]), 0, "its header cannot be read"),
        (lambda header: header.pop(KEY), 0, "contradicts itself"),
        (lambda header: header.__setitem__("other", header.pop(KEY)), 0, f"lacks the U-Net, or parts of it: {KEY}"),
    ],
)
def test_a_header_that_is_wrong_is_refused(file_v1, tmp_path: Path, change, length: int, words: str) -> None:
    _change(file_v1, tmp_path / "wrong.safetensors", change, length)
    assert re.search(words, _refused(tmp_path / "wrong.safetensors"))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_damage_to_the_first_bytes_gives_errors_of_this_program_only(data, file_v1, ckpt_v1, tmp_path) -> None:
    """Byte flips in the header of a safetensors file and in the pickle of a ckpt: refused, or harmless."""
    whole = data.draw(st.sampled_from([file_v1, ckpt_v1]))
    contents = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        contents[data.draw(st.integers(0, 20_000))] = data.draw(st.integers(0, 255))
    path = tmp_path / f"damaged{whole.suffix}"
    path.write_bytes(contents)
    try:
        load_family(ModelOptions(str(path)))
    except (UserError, UserErrors) as error:
        assert str(path) in str(error)
