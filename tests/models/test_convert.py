"""Converting changes the form of a model and nothing else; looking into a file costs nothing."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from library.cli.entry import run_entry
from library.cli.options import option_fields
from library.models.convert import ConvertOptions, convert
from library.models.options import MetadataOptions
from library.models.registry import inspect_model
from tests.tiny_models import make_tiny, to_stability_layout, write_folder

ROOT = Path(__file__).resolve().parents[2]


def run(*words) -> int:
    return run_entry(lambda: convert([str(word) for word in words]))


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def inspected(capsys, path: Path) -> str:
    capsys.readouterr()
    assert run(path, "--inspect") == 0
    return capsys.readouterr().out


# ---- converting


def test_a_model_goes_through_all_formats_and_comes_back(tiny, folder, tmp_path):
    stations = [folder, *(tmp_path / name for name in ("a.ckpt", "b", "c.safetensors", "d"))]
    assert run(stations[0], stations[1]) == 0
    assert run(stations[1], "--format", "diffusers", stations[2]) == 0
    assert run(stations[2], stations[3]) == 0
    assert run(stations[3], stations[4]) == 0
    for part in ("unet", "vae"):
        found = load_file(tmp_path / "d" / part / "diffusion_pytorch_model.safetensors")
        expected = getattr(tiny, part).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    found = load_file(tmp_path / "d" / "text_encoder" / "model.safetensors")
    expected = {key.removeprefix("text_model."): value for key, value in tiny.text_encoder.state_dict().items()}
    assert {key.removeprefix("text_model.") for key in found} == set(expected)
    assert all(torch.equal(found[f"text_model.{key}"], tensor) for key, tensor in expected.items())


def test_the_precision_is_that_of_the_source_unless_another_is_asked_for(tiny_v1, tmp_path):
    source = tmp_path / "half.safetensors"
    original = to_stability_layout(tiny_v1)
    save_file({key: tensor.half() for key, tensor in original.items()}, source)
    for name, options, dtype in (
        ("same", [], torch.float16),
        ("float", ["--save_precision", "float"], torch.float32),
        ("bf16", ["--save_precision", "bf16"], torch.bfloat16),
    ):
        assert run(source, tmp_path / f"{name}.safetensors", *options) == 0
        tensors = load_file(tmp_path / f"{name}.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {dtype}
        assert all(torch.equal(tensors[key], tensor.half().to(dtype)) for key, tensor in original.items())


def test_another_vae_is_put_in(folder_v1, tmp_path):
    other = make_tiny(False)
    other.vae.decoder.conv_out.bias.fill_(0.25)
    vae = tmp_path / "vae.safetensors"
    save_file({key: value for key, value in to_stability_layout(other).items() if "first_stage" in key}, vae)
    assert run(folder_v1, tmp_path / "new.safetensors", "--vae", vae) == 0
    bias = load_file(tmp_path / "new.safetensors")["first_stage_model.decoder.conv_out.bias"]
    assert bias.tolist() == [0.25] * 3


def test_that_a_model_predicts_v_is_said_once_and_kept(file_v2, tmp_path, capsys):
    assert run(file_v2, tmp_path / "v.safetensors", "--v_parameterization") == 0
    assert run(tmp_path / "v.safetensors", tmp_path / "v.ckpt") == 0
    assert run(tmp_path / "v.safetensors", tmp_path / "v") == 0
    assert metadata_of(tmp_path / "v.safetensors")["modelspec.architecture"] == "stable-diffusion-v2-768-v"
    assert metadata_of(tmp_path / "v.safetensors")["modelspec.resolution"] == "768x768"
    in_folder = metadata_of(tmp_path / "v" / "unet" / "diffusion_pytorch_model.safetensors")
    assert "diffusers_config" not in in_folder  # which would be wrong of the next model made from it
    assert "predicts v" in inspected(capsys, tmp_path / "v.ckpt")
    assert "predicts v" in inspected(capsys, tmp_path / "v")
    assert "the file does not say" in inspected(capsys, file_v2)


def test_a_file_that_says_noise_is_turned_into_one_that_says_v(tiny_v1, tmp_path, capsys):
    source, target = tmp_path / "noise.safetensors", tmp_path / "v.safetensors"
    save_file(to_stability_layout(tiny_v1), source, {"modelspec.prediction_type": "epsilon"})
    assert run(source, target, "--v_parameterization") == 0
    assert metadata_of(target)["modelspec.prediction_type"] == "v"
    assert "predicts v" in inspected(capsys, target)


def test_metadata_is_kept_but_for_what_is_given_anew_or_is_of_the_old_file(tiny_v1, tmp_path):
    source = tmp_path / "source.safetensors"
    old = {
        "ss_steps": "7",
        "modelspec.title": "Old",
        "modelspec.author": "they",
        "modelspec.resolution": "640x512",
        "modelspec.hash_sha256": "0x0",
    }
    save_file(to_stability_layout(tiny_v1), source, old)
    target = tmp_path / "target.safetensors"
    assert run(source, target, "--metadata_author", "me", "--metadata_license", "CC0") == 0
    found = metadata_of(target)
    expected = {"ss_steps": "7", "modelspec.title": "Old", "modelspec.author": "me", "modelspec.license": "CC0"}
    assert expected.items() <= found.items()
    assert found["modelspec.resolution"] == "640x512" and found["modelspec.architecture"] == "stable-diffusion-v1"
    assert len(found["modelspec.hash_sha256"]) == 66 and found["modelspec.hash_sha256"] != "0x0"
    assert run(target, tmp_path / "folder") == 0
    assert run(tmp_path / "folder", tmp_path / "again.safetensors") == 0
    assert expected.items() <= metadata_of(tmp_path / "again.safetensors").items()


def test_all_texts_and_an_image_are_written_and_kept(tiny_v1, tmp_path):
    source, target, again = (tmp_path / f"{name}.safetensors" for name in ("source", "target", "again"))
    save_file(to_stability_layout(tiny_v1), source)
    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    words = ("--metadata_usage_hint", "0.8", "--metadata_trigger_phrase", "qq", "--metadata_merged_from", "a, b")
    thumbnail = ("--metadata_thumbnail", tmp_path / "small.png")
    assert run(source, target, *words, *thumbnail, "--metadata_preprocessor", "canny") == 0
    assert run(target, again, "--metadata_is_negative_embedding", "False") == 0
    found = metadata_of(again)
    assert found["modelspec.usage_hint"] == "0.8" and found["modelspec.trigger_phrase"] == "qq"
    assert found["modelspec.merged_from"] == "a, b" and found["modelspec.preprocessor"] == "canny"
    assert found["modelspec.is_negative_embedding"] == "false"
    assert "modelspec.is_negative_embedding" not in metadata_of(target)
    assert found["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")


# ---- mistakes


def errors_of(capsys, *words) -> str:
    capsys.readouterr()
    assert run(*words) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_nothing_is_replaced_unless_asked_for(folder_v1, tmp_path, capsys):
    target = tmp_path / "mine.safetensors"
    target.write_text("mine")
    assert "mine.safetensors exists already" in errors_of(capsys, folder_v1, target)
    assert target.read_text() == "mine"
    assert run(folder_v1, target, "--overwrite") == 0
    assert len(load_file(target)) > 300
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.png").write_text("mine")
    assert "not empty and not a model" in errors_of(capsys, folder_v1, photos, "--overwrite")
    assert (photos / "cat.png").read_text() == "mine"


def test_a_model_may_take_its_own_place(tiny_v1, tmp_path):
    source = write_folder(tiny_v1, tmp_path / "model")
    assert run(source, source, "--overwrite", "--save_precision", "fp16") == 0
    tensors = load_file(source / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}


def test_mistakes_are_reported_together(tmp_path, capsys):
    said = errors_of(capsys, tmp_path / "no.ckpt", tmp_path / "x.pt", "--sav_precision", "fp16", "--format", "zip")
    assert "did you mean --save_precision" in said and "--format zip" in said
    said = errors_of(capsys, tmp_path / "no.ckpt", tmp_path / "x.pt")
    assert "SOURCE" in said and "no.ckpt: there is no such file" in said and "x.pt is no name for a folder" in said
    said = errors_of(capsys, tmp_path, tmp_path / "x.ckpt", "--format", "diffusers")
    assert "x.ckpt is no name for a folder" in said and "or leave out --format diffusers" in said
    said = errors_of(capsys)
    assert "SOURCE is missing" in said and "DESTINATION is missing" in said
    said = errors_of(capsys, tmp_path, tmp_path / "x.ckpt", "--format", "safetensors", "surplus")
    assert "x.ckpt does not end in .safetensors" in said and "unexpected argument 'surplus'" in said
    assert "SOURCE is missing" not in errors_of(capsys, "--inspect", tmp_path / "no.ckpt")


def test_what_is_no_model_is_named_and_not_converted(tmp_path, capsys):
    lora = tmp_path / "lora.safetensors"
    save_file({"lora_unet_mid_block.alpha": torch.ones(1)}, lora)
    said = errors_of(capsys, lora, tmp_path / "new.ckpt")
    assert "SOURCE" in said and "an adapter (LoRA)" in said and "--pretrained" not in said
    assert not (tmp_path / "new.ckpt").exists()


def test_help_and_mistakes_need_no_heavy_library(tmp_path):
    code = (
        "import sys; from library.cli.entry import run_entry; from library.models.convert import convert;"
        "status = run_entry(lambda: convert(sys.argv[1:]));"
        "print(status, [name for name in ('torch', 'numpy', 'diffusers') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "no.ckpt"), str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "2 []"


def test_the_page_names_every_option():
    page = (ROOT / "docs" / "convert.md").read_text(encoding="utf-8")
    for owner in (ConvertOptions, MetadataOptions):
        for field in option_fields(owner):
            assert field.flag in page


# ---- looking into files


def test_a_model_is_described(tiny, folder, tmp_path, capsys):
    assert run(folder, tmp_path / "model.safetensors", "--save_precision", "fp16", "--metadata_title", "Mine") == 0
    assert run(folder, tmp_path / "model.ckpt") == 0
    for path in (tmp_path / "model.safetensors", tmp_path / "model.ckpt", folder):
        found = inspect_model(str(path))
        assert found.kind == ("Stable Diffusion 2.x" if tiny.is_v2 else "Stable Diffusion 1.x")
        unet, vae, _ = found.parts
        for part, module in ((unet, tiny.unet), (vae, tiny.vae)):
            assert part.num_parameters == sum(parameter.numel() for parameter in module.parameters())
        said = inspected(capsys, path)
        assert "channels 32, 64; 1 layer a level; context width 64; heads " in said
        assert "2 layers; width 64; 49408 tokens" in said and "4 channels of latents" in said
    said = inspected(capsys, tmp_path / "model.safetensors")
    assert "float16 (1.61 MB)" in said and "modelspec.title: Mine" in said


def test_what_a_file_holds_beside_the_model_is_shown(tiny_v1, tmp_path, capsys):
    tensors = to_stability_layout(tiny_v1)
    tensors["model_ema.diffusion_modelout2weight"] = torch.zeros(1000)
    tensors["alphas_cumprod"] = torch.zeros(1000)
    del tensors["first_stage_model.encoder.conv_in.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    said = inspected(capsys, tmp_path / "model.safetensors")
    assert "averaged weights (EMA), which are not read: 1.00 k parameters in 1 tensor" in said
    assert "other keys, which are not read: 1.00 k parameters in 1 tensor" in said and "alphas_cumprod" in said
    assert "VAE" in said and "incomplete" in said and "no metadata" in said


@pytest.mark.parametrize(
    ("tensors", "kind"),
    [
        ({"lora_te_text_model_encoder.alpha": torch.ones(1)}, "an adapter (LoRA), not a whole model"),
        ({"first_stage_model.encoder.conv_in.weight": torch.ones(1)}, "a VAE alone"),
        ({"encoder.down_blocks.0.resnets.0.norm1.weight": torch.ones(1)}, "a VAE alone"),
        ({"emb_params": torch.ones(2, 64)}, "a textual inversion embedding"),
        ({"conditioner.embedders.0.weight": torch.ones(1)}, "a variant of Stable Diffusion XL"),
        ({"double_blocks.0.img_attn.proj.weight": torch.ones(1)}, "a FLUX model"),
    ],
)
def test_a_file_of_another_kind_is_called_what_it_is(tmp_path, capsys, tensors, kind):
    save_file(tensors, tmp_path / "some.safetensors", {"ss_network_dim": "4"})
    said = inspected(capsys, tmp_path / "some.safetensors")
    assert f"the file is {kind}" in said and "ss_network_dim: 4" in said and "in 1 tensor, float32" in said


def test_an_embedding_in_a_pickle_is_called_so(tmp_path, capsys):
    content = {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.zeros(3, 64)}, "name": "cat"}
    torch.save(content, tmp_path / "cat.pt")
    said = inspected(capsys, tmp_path / "cat.pt")
    assert "a textual inversion embedding" in said and "192 parameters" in said


def test_a_file_larger_than_memory_is_described(tiny_v1, tmp_path):
    """64 GB of which only the header is there: reading any large part of it would be felt, or fail."""
    tensors = {key: ["F32", list(tensor.shape)] for key, tensor in to_stability_layout(tiny_v1).items()}
    tensors["model_ema.huge"] = ["F32", [16_000_000, 1000]]
    header, offset = {}, 0
    for key, (dtype, shape) in tensors.items():
        size = 4 * torch.Size(shape).numel()
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    path = tmp_path / "huge.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        try:
            file.truncate(8 + len(text) + offset)
        except OSError:
            pytest.skip("the file system has no files with holes")
    found = inspect_model(str(path))
    assert found.parts[-1].num_parameters == 16_000_000_000
    assert found.parts[0].dimensions.startswith("channels 32, 64")


# ---- what training takes, converting takes


def test_weights_that_fp16_cannot_hold_are_counted_and_named(tiny_v1, tmp_path, caplog):
    """In silence, the file would draw black images, and nobody would know why."""
    tensors = to_stability_layout(tiny_v1)
    key = "model.diffusion_model.input_blocks.0.0.weight"
    tensors[key].view(-1)[:3] = torch.tensor([70_000.0, -70_000.0, 65_504.0])
    save_file(tensors, tmp_path / "wide.safetensors")
    for name in ("half.safetensors", "half.ckpt", "half"):
        caplog.clear()
        assert run(tmp_path / "wide.safetensors", tmp_path / name, "--save_precision", "fp16") == 0
        (said,) = [record.getMessage() for record in caplog.records if "beyond the range" in record.getMessage()]
        assert said.startswith("2 weights are") and "--save_precision bf16" in said
        assert ("conv_in.weight" if name == "half" else key) in said
    caplog.clear()
    for precision in ("bf16", "float"):
        assert (
            run(tmp_path / "wide.safetensors", tmp_path / f"{precision}.safetensors", "--save_precision", precision)
            == 0
        )
    assert run(tmp_path / "half.safetensors", tmp_path / "again.ckpt") == 0  # the infinite ones were infinite before
    assert "beyond the range" not in caplog.text


def test_a_file_with_a_prefix_before_its_keys_is_inspected_as_it_is_loaded(tiny_v1, tmp_path, capsys):
    plain, wrapped = tmp_path / "plain.safetensors", tmp_path / "wrapped.safetensors"
    tensors = to_stability_layout(tiny_v1)
    save_file(tensors, plain)
    save_file({f"model.{key}": tensor for key, tensor in tensors.items()}, wrapped)
    assert inspected(capsys, wrapped).replace("wrapped", "plain") == inspected(capsys, plain)


@pytest.mark.parametrize("source", ["file", "folder", "folder without vae/"])
def test_a_model_without_a_vae_is_converted_with_another(tiny_v1, tmp_path, capsys, source):
    tensors = to_stability_layout(tiny_v1)
    vae = {key: value for key, value in tensors.items() if key.startswith("first_stage_model.")}
    save_file(vae, tmp_path / "vae.safetensors")
    if source == "file":
        model = tmp_path / "model.safetensors"
        save_file({key: value for key, value in tensors.items() if key not in vae}, model)
    else:
        model = write_folder(tiny_v1, tmp_path / "model")
        for path in (model / "vae").iterdir():
            path.unlink()
        if source != "folder":
            (model / "vae").rmdir()
    assert run(model, tmp_path / "new.safetensors", "--vae", tmp_path / "vae.safetensors") == 0
    found = load_file(tmp_path / "new.safetensors")
    assert found.keys() == tensors.keys() and all(torch.equal(found[key], tensor) for key, tensor in vae.items())
    assert "VAE:" not in inspected(capsys, model)
    assert "vae" in errors_of(capsys, model, tmp_path / "no.safetensors").lower()
