"""A wrong path is reported at once, by name, before anything heavy is imported."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from library.models.families import model_problems, other_family
from library.models.options import ModelOptions

FLAG = "--pretrained_model_name_or_path"


def problems_of(path: Path) -> list[str]:
    return [str(problem) for problem in model_problems(ModelOptions(str(path)))]


SD_KEYS = ("model.diffusion_model.out.2.bias", "cond_stage_model.transformer.text_model.final_layer_norm.bias")


def write_safetensors(path: Path, *, keys: tuple[str, ...] = SD_KEYS[:1], data: bytes = b"\0" * 16) -> bytes:
    """A file of one tensor of 16 bytes, and empty ones."""
    entries = {key: {"dtype": "F32", "shape": [0], "data_offsets": [16, 16]} for key in keys[1:]}
    header = json.dumps({keys[0]: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}, **entries}).encode()
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
    write_safetensors(tmp_path / "model.safetensors", keys=SD_KEYS)
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


# ---- whole files and folders of other things


def test_a_file_of_another_family_is_reported_with_the_other_mistakes(tmp_path):
    path = tmp_path / "3.safetensors"
    write_safetensors(path, keys=("model.diffusion_model.joint_blocks.0.a",))
    (problem,) = model_problems(ModelOptions(str(path)))
    assert problem.message == f"{FLAG} {path} is a Stable Diffusion 3 model"
    assert "Stable Diffusion 1.x and 2.x" in problem.hint
    assert other_family(str(path)) == "Stable Diffusion 3"


def test_the_refiner_is_refused_by_name(tmp_path):
    """It has one text encoder, OpenCLIP's, where the base model has CLIP's."""
    file = tmp_path / "refiner.safetensors"
    write_safetensors(file, keys=("conditioner.embedders.0.model.ln_final.bias", "model.diffusion_model.out.2.bias"))
    folder = make_folder(tmp_path / "a", "StableDiffusionXLImg2ImgPipeline", "unet", "vae", "text_encoder_2")
    for path in (file, folder):
        (problem,) = model_problems(ModelOptions(str(path)))
        assert problem.message == f"{FLAG} {path} is a Stable Diffusion XL refiner, not a base model"
        assert other_family(str(path)) == "Stable Diffusion XL refiner"


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("lora_unet_mid_block_attentions_0.alpha", "is an adapter (LoRA), not a whole model"),
        ("first_stage_model.encoder.conv_in.weight", "is a VAE alone"),
        ("encoder.down_blocks.0.resnets.0.norm1.weight", "is a VAE alone"),
        ("model.diffusion_model.out.2.bias", "is a U-Net without a text encoder"),
        ("conditioner.embedders.1.model.ln_final.bias", "is a part of a Stable Diffusion XL model, without its U-Net"),
        ("down_blocks.0.resnets.0.norm1.weight", "is a U-Net alone"),
        ("anything", "is not a model of a known family: it has no keys model.diffusion_model.*, but anything"),
    ],
)
def test_a_file_that_is_no_whole_model_is_detected_from_its_header(tmp_path, key, words):
    path = tmp_path / "some.safetensors"
    write_safetensors(path, keys=(key,))
    (problem,) = problems_of(path)
    assert f"{FLAG} {path} {words}" in problem
    assert other_family(str(path)) is None  # which is for whole models


def make_folder(folder: Path, pipeline: str | None, *parts: str) -> Path:
    for part in parts:
        (folder / part).mkdir(parents=True)
    if pipeline is not None:
        (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    return folder


@pytest.mark.parametrize(
    ("pipeline", "parts", "family"),
    [
        ("StableDiffusion3Pipeline", ("transformer", "vae", "text_encoder", "text_encoder_3"), "Stable Diffusion 3"),
        ("FluxPipeline", ("transformer", "vae", "text_encoder", "text_encoder_2"), "FLUX"),
        ("Lumina2Pipeline", ("transformer", "vae", "text_encoder"), "Lumina"),
        ("KolorsPipeline", ("unet", "vae", "text_encoder"), "Kolors"),  # which has the same parts
    ],
)
def test_a_folder_of_another_family_is_one_mistake(tmp_path, pipeline, parts, family):
    folder = make_folder(tmp_path / "model", pipeline, *parts)
    (problem,) = model_problems(ModelOptions(str(folder)))
    assert problem.message == f"{FLAG} {folder} is a {family} model"
    assert other_family(str(folder)) == family


def test_a_folder_for_a_pipeline_that_is_not_known_is_reported_with_its_name(tmp_path):
    folder = make_folder(tmp_path / "model", "MusicPipeline", "transformer")
    (problem,) = problems_of(folder)
    assert "MusicPipeline" in problem
    folder = make_folder(tmp_path / "unnamed", None, "transformer")
    (folder / "model_index.json").write_text("[]")
    (problem,) = problems_of(folder)
    assert "with a transformer instead of a U-Net" in problem


@pytest.mark.parametrize("pipeline", ["StableDiffusionInpaintPipeline", "LatentConsistencyModelPipeline", None])
def test_stable_diffusion_under_another_pipelines_name_is_left_to_its_parts(folder_v1, tmp_path, pipeline):
    copy = tmp_path / "copy"
    shutil.copytree(folder_v1, copy)
    (copy / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    assert problems_of(copy) == [] and other_family(str(copy)) is None


def test_what_cannot_be_detected_at_once_is_left_to_loading(tmp_path, monkeypatch, file_v1, file_v2):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.ckpt").write_bytes(b"x")
    (tmp_path / "cut.safetensors").write_bytes(b"x" * 9)
    for path in (tmp_path / "model.ckpt", tmp_path / "cut.safetensors", "someone/some-model", file_v1, file_v2):
        assert other_family(str(path)) is None
    assert problems_of(file_v1) == problems_of(file_v2) == []


def test_a_vae_is_looked_for_in_what_the_flag_names(folder_v1, tmp_path):
    path = tmp_path / "some.safetensors"
    for key, has_vae in (("first_stage_model.a", True), ("encoder.down.0.a", True), ("lora_unet.alpha", False)):
        write_safetensors(path, keys=(key,))
        problems = model_problems(ModelOptions(str(folder_v1), vae=str(path)))
        assert [problem.message for problem in problems] == [] if has_vae else [f"--vae {path} holds no VAE"]


def test_nothing_heavy_is_imported_for_these_checks(file_v1):
    heavy = "('torch', 'numpy', 'diffusers')"
    code = (
        "import sys; from library.models.families import model_problems, other_family;"
        "from library.models.options import ModelOptions;"
        f"print(model_problems(ModelOptions(sys.argv[1])), [m for m in {heavy} if m in sys.modules])"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code, str(file_v1)], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[] []"
