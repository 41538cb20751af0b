"""A wrong path is reported at once, by name, before anything heavy is imported."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from library.models.options import ModelOptions
from library.models.path_checks import model_problems

FLAG = "--pretrained_model_name_or_path"


def problems_of(path: Path) -> list[str]:
    return [str(problem) for problem in model_problems(ModelOptions(str(path)))]


def write_safetensors(path: Path, *, data: bytes = b"\0" * 16) -> bytes:
    header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    contents = struct.pack("<Q", len(header)) + header + data
    path.write_bytes(contents)
    return contents


def test_an_absent_option_is_left_to_the_parser():
    assert model_problems(ModelOptions()) == []


def test_a_missing_path_is_named_with_its_flag(tmp_path):
    (problem,) = problems_of(tmp_path / "nothing.safetensors")
    assert FLAG in problem and "nothing.safetensors" in problem and "no such file" in problem


def test_a_hub_name_is_left_to_loading_unless_it_is_a_path_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert problems_of(Path("someone/some-model")) == []
    (tmp_path / "someone").mkdir()
    for path in ("someone/some-model", "models/a.safetensors", "/someone/some-model", "a/b/c", "some-model"):
        (problem,) = problems_of(Path(path))
        assert "there is no such file or folder" in problem


def test_the_path_of_the_vae_is_looked_at_too(folder_v1, tmp_path):
    (tmp_path / "vae.safetensors").write_bytes(b"")
    for vae, words in ((tmp_path / "none", "no such file"), (tmp_path / "vae.safetensors", "is empty")):
        (problem,) = model_problems(ModelOptions(str(folder_v1), vae=str(vae)))
        assert problem.message.startswith(f"--vae {vae}") and words in problem.message


def test_an_unknown_ending_is_refused_with_the_known_ones(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"x")
    (problem,) = problems_of(path)
    assert "'.gguf'" in problem and ".safetensors" in problem and ".ckpt" in problem


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
def test_an_empty_file_is_called_empty(tmp_path, ending):
    path = tmp_path / f"model{ending}"
    path.touch()
    (problem,) = problems_of(path)
    assert "is empty (0 bytes)" in problem


def test_a_whole_safetensors_file_is_fine(tmp_path):
    write_safetensors(tmp_path / "model.safetensors")
    assert problems_of(tmp_path / "model.safetensors") == []


@pytest.mark.parametrize("kept", [5, 8, 20, -1, -16])
def test_a_cut_off_safetensors_file_is_found_wherever_it_ends(tmp_path, kept):
    path = tmp_path / "model.safetensors"
    contents = write_safetensors(path)
    path.write_bytes(contents[:kept])
    (problem,) = problems_of(path)
    assert "is cut off" in problem and "model.safetensors" in problem


def test_bytes_behind_the_end_are_damage(tmp_path):
    write_safetensors(tmp_path / "model.safetensors", data=b"\0" * 20)
    (problem,) = problems_of(tmp_path / "model.safetensors")
    assert "is damaged" in problem


@pytest.mark.parametrize(
    "contents", [b"<!DOCTYPE html><html>not found</html>", struct.pack("<Q", 4) + b"nope", b"\2" + b"\0" * 7 + b"[]"]
)
def test_another_format_under_that_ending_is_called_so(tmp_path, contents):
    path = tmp_path / "model.safetensors"
    path.write_bytes(contents)
    (problem,) = problems_of(path)
    assert "is not a safetensors file" in problem


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    (problem,) = problems_of(tmp_path)
    assert FLAG in problem and "model_index.json" in problem and "unet/" in problem


def test_a_whole_folder_is_fine(folder):
    assert problems_of(folder) == []


def test_all_that_a_folder_lacks_is_reported_together(folder_v1, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder_v1, copy)
    shutil.rmtree(copy / "vae")
    (copy / "unet" / "config.json").unlink()
    weights = copy / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    problems = "\n".join(problems_of(copy))
    assert "lacks the folder vae/" in problems
    assert "lacks unet/config.json" in problems
    assert "model.safetensors is cut off" in problems


def test_missing_weights_of_a_part_name_what_was_looked_for(folder_v1, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder_v1, copy)
    (copy / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (problem,) = problems_of(copy)
    assert "no weights in unet/" in problem and "diffusion_pytorch_model.fp16.safetensors" in problem


def test_nothing_heavy_is_imported_for_these_checks():
    heavy = "('torch', 'numpy', 'diffusers')"
    code = f"import sys, library.models.path_checks; print([m for m in {heavy} if m in sys.modules])"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
