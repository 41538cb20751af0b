"""A saved model is the model that was loaded, in this program and in others."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from library.cli.errors import UserError
from library.models.family import LoadSettings
from library.models.layouts.formats import FORMATS, choose_format
from library.models.layouts.ldm_layout import load_single_file
from library.models.layouts.ldm_writing import single_file_tensors
from library.models.layouts.parts import ModelParts, empty_text_encoder, empty_unet, empty_vae
from library.models.options import MetadataOptions, ModelOptions
from library.models.registry import load_family
from library.models.stable_diffusion.detection import detect
from library.models.stable_diffusion.layout import SD_1, layout_of
from library.models.weights.checkpoint_files import open_weights
from library.models.weights.modelspec import SpecifiedModel, specification_entries
from library.models.weights.weight_writing import stored, write_pickle
from library.training.evaluation.samplers import SAMPLERS
from tests.models.layouts.test_ldm_layout import TEXT_V1, TEXT_V2, UNET_V1, UNET_V2, VAE
from tests.tiny_models import make_tiny, to_stability_layout, write_folder

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = ("diffusers", "diffusers_safetensors")


@pytest.fixture(autouse=True, scope="module")
def _quiet_libraries():
    logging.getLogger("diffusers").setLevel(logging.ERROR)


def load(path: Path, **options):
    return load_family(ModelOptions(str(path), **options))


def path_for(folder: Path, format: str) -> Path:
    return folder / f"model-{format}{FORMATS[format].ending}"


def save(family, folder: Path, format: str, dtype=torch.float32, metadata=None, **position) -> Path:
    path = path_for(folder, format)
    family.save(path, format=format, dtype=dtype, metadata=metadata or {}, **position)
    return path


def outputs(family) -> list[torch.Tensor]:
    """What the three networks make of fixed inputs."""
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    pixels = torch.rand(1, 3, 16, 16, generator=generator) * 2 - 1
    with torch.no_grad():
        conditioning = family.encode_prompts(["a cat", "two dogs (and a (bird))"])
        predicted = family.predict(latents, torch.tensor([3, 900]), conditioning)
    return [predicted, conditioning.hidden_states, family.encode_images(pixels, [5]), family.decode_latents(latents)]


def networks(model) -> dict[str, dict[str, torch.Tensor]]:
    text = {key.removeprefix("text_model."): value for key, value in model.text_encoder.state_dict().items()}
    return {"unet": model.unet.state_dict(), "vae": model.vae.state_dict(), "text_encoder": text}


def read_folder(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of a Diffusers folder, read by the format's own library, whatever the level of their names."""
    found = {}
    for part in ("unet", "vae", "text_encoder"):
        (path,) = [*(folder / part).glob("*.safetensors"), *(folder / part).glob("*.bin")]
        tensors = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
        found[part] = {key.removeprefix("text_model."): value for key, value in tensors.items()}
    return found


def assert_same_tensors(found, expected) -> None:
    for part, tensors in expected.items():
        assert found[part].keys() == tensors.keys(), part
        for key, tensor in tensors.items():
            assert torch.equal(found[part][key], tensor), f"{part} {key}"


# ---- names, shapes and data types of full-size files

# SHA-256 of the lines "key shape dtype", sorted, of files written by the program that others learned the format from,
# and some of these lines to see what is wrong when that differs
KNOWN_FILES = {
    "sd15": (
        1130,
        "fab31410f84d74d32d9d10fa95715b36b850fcfe67554a2b1238efe720001b39",
        [
            "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight (77, 768) float32",
            "cond_stage_model.transformer.text_model.encoder.layers.3.self_attn.v_proj.weight (768, 768) float32",
            "cond_stage_model.transformer.text_model.final_layer_norm.bias (768,) float32",
            "first_stage_model.decoder.up.2.block.1.conv1.weight (512, 512, 3, 3) float32",
            "first_stage_model.encoder.mid.attn_1.q.weight (512, 512, 1, 1) float32",
            "model.diffusion_model.input_blocks.5.0.in_layers.2.bias (640,) float32",
            "model.diffusion_model.output_blocks.3.1.proj_out.weight (1280, 1280, 1, 1) float32",
            "model.diffusion_model.output_blocks.5.2.conv.bias (1280,) float32",
        ],
    ),
    "sd21": (
        1228,
        "538e3431f00e946acb03d3e75d3b193b8d07e2784bec7b946937380a3184206a",
        [
            "cond_stage_model.model.ln_final.bias (1024,) float32",
            "cond_stage_model.model.logit_scale () int64",
            "cond_stage_model.model.text_projection (1024, 1024) float32",
            "cond_stage_model.model.transformer.resblocks.23.attn.in_proj_weight (3072, 1024) float32",
            "cond_stage_model.model.transformer.resblocks.18.mlp.c_proj.weight (1024, 4096) float32",
            "first_stage_model.decoder.up.3.block.0.norm1.weight (512,) float32",
            "model.diffusion_model.input_blocks.1.1.proj_in.weight (320, 320) float32",
            "model.diffusion_model.output_blocks.3.0.in_layers.2.weight (1280, 2560, 3, 3) float32",
        ],
    ),
}


@pytest.mark.parametrize(
    ("known", "unet", "text"),
    [
        ("sd15", UNET_V1, TEXT_V1),
        ("sd21", UNET_V2, TEXT_V2),
        ("sd21", {**UNET_V2, "use_linear_projection": False}, TEXT_V2),
    ],
    ids=["sd15", "sd21", "sd21-convolutions"],
)
def test_full_size_files_have_the_keys_shapes_and_types_that_other_programs_look_for(known, unet, text):
    layout = layout_of(known == "sd21")
    encoder = empty_text_encoder(text, "x", layout.text_encoders[0])
    parts = ModelParts(empty_unet(unet, "x"), empty_vae(VAE, "x"), {"text_encoder": encoder})
    tensors = single_file_tensors(parts, layout, {}, torch.float32)
    kinds = {key: (tensor.shape, str(tensor.dtype).removeprefix("torch.")) for key, tensor in tensors.items()}
    lines = sorted(f"{key} {shape} {dtype}" for key, (shape, dtype) in kinds.items())
    count, digest, examples = KNOWN_FILES[known]
    assert set(examples) - set(lines) == set()
    assert len(lines) == count
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == digest


# ---- what is saved is what was loaded


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_saved_model_predicts_what_the_loaded_one_did(tiny, tmp_path, format, prediction_type):
    family = load(write_folder(tiny, tmp_path / "source", prediction_type=prediction_type))
    again = load(save(family, tmp_path, format))
    assert (again.version, again.process.prediction_type) == (family.version, prediction_type)
    for found, expected in zip(outputs(again), outputs(family), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("format", ["ckpt", "safetensors"])
def test_a_folder_comes_back_tensor_for_tensor_from_a_single_file(tiny, folder, tmp_path, format):
    single = save(load(folder), tmp_path, format)
    for folder_format in FOLDERS:
        assert_same_tensors(read_folder(save(load(single), tmp_path, folder_format)), networks(tiny))


@pytest.mark.parametrize("ending", [".ckpt", ".safetensors"])
def test_a_single_file_holds_the_tensors_of_the_layout(tiny, folder, tmp_path, ending):
    path = save(load(folder), tmp_path, ending[1:])
    found = load_file(path) if ending == ".safetensors" else torch.load(path, weights_only=True)["state_dict"]
    unused = ("cond_stage_model.model.transformer.resblocks.2.", "cond_stage_model.model.text_projection")
    expected = to_stability_layout(tiny)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        if not key.startswith((*unused, "cond_stage_model.model.logit_scale")):
            assert torch.equal(found[key], tensor), key


def test_a_ckpt_says_where_training_was_and_what_the_model_is(folder, tmp_path):
    content = torch.load(save(load(folder), tmp_path, "ckpt", epoch=3, global_step=7), weights_only=True)
    assert list(content) == ["state_dict", "epoch", "global_step", "metadata"]
    assert list(content["metadata"]) == ["diffusers_config"]
    assert (content["epoch"], content["global_step"]) == (3, 7)


def test_a_pickle_is_not_larger_than_its_tensors(tmp_path):
    """Views of larger tensors, written as they are, would drag those along."""
    whole = torch.arange(100_000.0)
    write_pickle(tmp_path / "x.bin", {"state_dict": {"slice": stored(whole[10:12], torch.float32)}})
    assert torch.load(tmp_path / "x.bin", weights_only=True)["state_dict"]["slice"].tolist() == [10, 11]
    assert (tmp_path / "x.bin").stat().st_size < 10_000


def test_the_unused_layer_of_an_sd2_file_is_carried_over(file_v2, tiny_v2, tmp_path):
    original = load_file(file_v2)
    found = load_file(save(load(file_v2), tmp_path, "safetensors"))
    assert found.keys() == original.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in original.items())


def test_placeholders_for_it_have_its_shapes(tiny_v2, tmp_path):
    found = load_file(save(load(write_folder(tiny_v2, tmp_path / "source")), tmp_path, "safetensors"))
    prefix = "cond_stage_model.model."
    blocks = f"{prefix}transformer.resblocks."
    last = {key.removeprefix(f"{blocks}1."): value for key, value in found.items() if key.startswith(f"{blocks}1.")}
    for key, tensor in last.items():
        assert torch.equal(found[f"{blocks}2.{key}"], tensor)
    assert found[f"{prefix}text_projection"].shape == (64, 64)
    assert found[f"{prefix}logit_scale"].shape == () and found[f"{prefix}logit_scale"].dtype == torch.int64


def test_convolutions_around_sd2_attention_become_linear_layers_with_the_same_result(tiny_v2, tmp_path):
    config = {**tiny_v2.unet.config, "use_linear_projection": False}
    unet = UNet2DConditionModel.from_config(config)
    state = tiny_v2.unet.state_dict()
    for key, empty in unet.state_dict().items():
        state[key] = state[key].reshape(empty.shape)
    unet.load_state_dict(state)
    source = write_folder(tiny_v2, tmp_path / "source")
    unet.save_pretrained(source / "unet")
    family = load(source)
    again = load(save(family, tmp_path, "safetensors"))
    for found, expected in zip(outputs(again), outputs(family), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


# ---- what weights do not show


def change_config(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("format", ["ckpt", "safetensors"])
def test_a_single_file_of_an_unusual_model_is_read_as_that_model(tiny_v1, tmp_path, format, caplog):
    source = write_folder(tiny_v1, tmp_path / "source")
    change_config(source / "unet" / "config.json", attention_head_dim=4)
    change_config(source / "vae" / "config.json", scaling_factor=0.3)
    change_config(source / "text_encoder" / "config.json", num_attention_heads=2)
    change_config(source / "scheduler" / "scheduler_config.json", beta_end=0.02)
    family = load(source)
    path = save(family, tmp_path, format)
    assert "unet attention_head_dim; vae scaling_factor; text_encoder num_attention_heads" in caplog.text
    again = load(path)
    for found, expected in zip(outputs(again), outputs(family), strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(again.process.schedule.alphas_cumprod, family.process.schedule.alphas_cumprod)
    assert again.scale_latents(torch.ones(1)).item() == pytest.approx(0.3)


@pytest.mark.parametrize("format", ["safetensors", "diffusers"])
def test_a_model_trained_on_zero_terminal_snr_says_so(folder_v1, tmp_path, format):
    family = load_family(ModelOptions(str(folder_v1)), settings=LoadSettings(zero_terminal_snr=True))
    again = load(save(family, tmp_path, format))
    assert again.process.schedule.alphas_cumprod[-1] == 0
    assert torch.equal(again.process.schedule.alphas_cumprod, family.process.schedule.alphas_cumprod)
    assert not torch.equal(load(folder_v1).process.schedule.alphas_cumprod, family.process.schedule.alphas_cumprod)


def stated(path: Path) -> dict[str, dict]:
    """The configurations in the metadata of a single file, read without this program."""
    if path.suffix == ".ckpt":
        metadata = torch.load(path, weights_only=True)["metadata"]
    else:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
    return json.loads(metadata["diffusers_config"])


@pytest.mark.parametrize("format", ["ckpt", "safetensors"])
def test_a_single_file_states_the_configurations_that_a_folder_has(tiny, folder, tmp_path, format):
    found = stated(save(load(folder), tmp_path, format))
    for part, name in {"unet": "config.json", "vae": "config.json", "scheduler": "scheduler_config.json"}.items():
        expected = json.loads((folder / part / name).read_text())
        known = {key: value for key, value in expected.items() if key in found[part]}
        assert known == {key: found[part][key] for key in known}, part
        assert {key for key in expected if not key.startswith("_")} <= found[part].keys()
        assert "_name_or_path" not in found[part]  # a path of the machine it was made on
    text = tiny.text_encoder.config
    assert found["text_encoder"]["num_attention_heads"] == text.num_attention_heads
    assert found["text_encoder"]["hidden_act"] == text.hidden_act


_WRONG_METADATA = {
    "not JSON": "{",
    "no object": "[1]",
    "deeply nested": "[" * 100_000,
    "parts that are no objects": json.dumps({"unet": 3, "vae": [1], "text_encoder": None, "scheduler": "x"}),
    "sizes of another model": json.dumps({"unet": {"block_out_channels": [32, 4]}, "vae": {"layers_per_block": 10**9}}),
    "numbers that are none": json.dumps({"vae": {"scaling_factor": "0.2"}, "unet": {"freq_shift": float("nan")}}),
    "names of nothing": json.dumps({"unet": {"act_fn": "magic"}, "text_encoder": {"hidden_act": "magic"}}),
    "another layer": json.dumps({"unet": {"resnet_time_scale_shift": "magic"}, "vae": {"use_quant_conv": False}}),
    "uneven heads": json.dumps({"unet": {"attention_head_dim": 7}, "text_encoder": {"num_attention_heads": 7}}),
    "more inputs": json.dumps({"unet": {"encoder_hid_dim_type": "text_proj", "encoder_hid_dim": 5}}),
    "no noise schedule": json.dumps({"scheduler": {"beta_start": [1], "trained_betas": {"a": 1}}}),
}  # fmt: skip


@pytest.mark.parametrize("wrong", _WRONG_METADATA)
def test_metadata_that_does_not_fit_the_tensors_is_ignored_with_a_warning(file_v1, tiny_v1, caplog, wrong):
    """It may have been edited, or copied from another model: programs that do not know it read the file, too."""
    file = replace(open_weights(file_v1), metadata={"diffusers_config": _WRONG_METADATA[wrong]})
    parts = load_single_file(file, SD_1)
    assert detect(file).scheduler == {}
    assert f"{file_v1}: the configuration of the" in caplog.text and "in its metadata is ignored" in caplog.text
    for name in ("attention_head_dim", "act_fn", "freq_shift", "block_out_channels"):
        assert list(np.ravel(parts.unet.config[name])) == list(np.ravel(tiny_v1.unet.config[name]))
    assert (parts.vae.config.scaling_factor, parts.vae.config.layers_per_block) == (0.18215, 1)
    assert parts.text_encoders["text_encoder"].config.hidden_act == "quick_gelu"


def test_the_metadata_of_earlier_files_is_read(file_v1, tmp_path):
    """They state only what differs from Stable Diffusion."""
    path = tmp_path / "model.safetensors"
    entry = {"vae": {"scaling_factor": 0.3}, "scheduler": {"prediction_type": "v_prediction"}}
    save_file(load_file(file_v1), path, {"config_not_in_weights": json.dumps(entry)})
    family = load(path)
    assert family.process.prediction_type == "v_prediction"
    assert family.scale_latents(torch.ones(1)).item() == pytest.approx(0.3)


@pytest.mark.parametrize(
    "wrong",
    [{"beta_start": "x"}, {"beta_end": -1}, {"num_train_timesteps": 0}, {"trained_betas": ["x"]}, {"trained_betas": 3}],
    ids=str,
)
def test_betas_that_make_no_noise_schedule_are_a_user_error(tiny_v1, tmp_path, wrong):
    source = write_folder(tiny_v1, tmp_path / "source")
    change_config(source / "scheduler" / "scheduler_config.json", **wrong)
    with pytest.raises(UserError, match="the scheduler's betas"):
        load(source)


def test_layers_without_a_name_in_the_layout_are_refused_for_single_files(tiny_v1, tmp_path):
    family = load(write_folder(tiny_v1, tmp_path / "source"))
    family.unet.mid_block.attentions.append(torch.nn.Linear(2, 2))
    with pytest.raises(UserError, match="no name for: mid_block.attentions.1.weight"):
        save(family, tmp_path, "safetensors")
    assert not path_for(tmp_path, "safetensors").exists()


# ---- other programs


@pytest.mark.parametrize("format", FOLDERS)
def test_diffusers_reads_the_folder(tiny, folder, tmp_path, format):
    family = load(folder)
    saved = save(family, tmp_path, format)
    pipeline = StableDiffusionPipeline.from_pretrained(saved, local_files_only=True)
    assert_diffusers_has(pipeline, tiny)
    config = json.loads((saved / "scheduler" / "scheduler_config.json").read_text())
    assert (config["beta_schedule"], config["beta_start"], config["beta_end"]) == ("scaled_linear", 0.00085, 0.012)
    assert (config["steps_offset"], config["clip_sample"], config["prediction_type"]) == (1, False, "epsilon")
    tokens = pipeline.tokenizer("a cat, zwölf", padding="max_length").input_ids
    assert tokens == family.tokenizer.encode(["a cat, zwölf"]).ids[0, 0].tolist()
    assert pipeline("a cat", num_inference_steps=1, output_type="np", height=16, width=16).images.shape[1:3] == (16, 16)


@pytest.mark.parametrize("format", ["ckpt", "safetensors"])
def test_diffusers_reads_the_single_file(tiny, folder, tmp_path, format):
    family = load(folder)
    config = save(family, tmp_path, "diffusers_safetensors")
    for weights in config.rglob("*.safetensors"):
        weights.unlink()  # so that all comes from the single file
    path = save(family, tmp_path, format)
    pipeline = StableDiffusionPipeline.from_single_file(str(path), config=str(config), local_files_only=True)
    assert_diffusers_has(pipeline, tiny)


def assert_diffusers_has(pipeline, tiny) -> None:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    input_ids = torch.randint(0, 49000, (2, 77), generator=generator)
    with torch.no_grad():
        text = tiny.text_encoder(input_ids).last_hidden_state
        torch.testing.assert_close(pipeline.text_encoder(input_ids).last_hidden_state, text, atol=1e-5, rtol=0)
        expected = tiny.unet(latents, torch.tensor([3, 900]), text).sample
        found = pipeline.unet(latents, torch.tensor([3, 900]), text).sample
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        expected = tiny.vae.decode(latents).sample
        torch.testing.assert_close(pipeline.vae.decode(latents).sample, expected, atol=1e-5, rtol=0)


def test_the_parts_of_a_folder_are_files_that_every_version_of_the_libraries_looks_for(folder, tmp_path):
    family = load(folder)
    for format, names in {
        "diffusers": ("diffusion_pytorch_model.bin", "pytorch_model.bin"),
        "diffusers_safetensors": ("diffusion_pytorch_model.safetensors", "model.safetensors"),
    }.items():
        saved = save(family, tmp_path, format)
        assert {path.name for path in saved.glob("[utv]*/*model*")} == {*names}
    with safe_open(saved / "text_encoder" / "model.safetensors", "pt") as file:
        assert all(key.startswith("text_model.") for key in file.keys())  # noqa: SIM118
        assert file.metadata()["format"] == "pt"
    index = json.loads((saved / "model_index.json").read_text())
    assert index["safety_checker"] == index["feature_extractor"] == [None, None]
    CLIPTextModel.from_pretrained(saved / "text_encoder", local_files_only=True)
    tokenizer = CLIPTokenizer.from_pretrained(saved / "tokenizer", local_files_only=True)
    assert tokenizer.model_max_length == 77


@pytest.mark.parametrize(("prediction_type", "size"), [("epsilon", 512), ("v_prediction", 768)])
def test_a_folder_made_from_a_file_says_how_large_images_are(file_v2, tmp_path, prediction_type, size):
    family = load(file_v2, v_parameterization=prediction_type == "v_prediction")
    saved = save(family, tmp_path, "diffusers_safetensors")
    scale = 2  # of the tiny VAE
    assert json.loads((saved / "unet" / "config.json").read_text())["sample_size"] == size // scale
    scheduler = json.loads((saved / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == prediction_type and scheduler["_class_name"] == "DDIMScheduler"


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("source", ["folder_v1", "file that says epsilon"])
def test_a_noise_model_that_was_turned_into_a_v_model_says_so_once_it_is_saved(
    source, format, folder_v1, tiny_v1, stability_layout, tmp_path
):
    """Else the next program that draws images with it takes v for noise."""
    path = folder_v1
    if source != "folder_v1":
        path = tmp_path / "epsilon.safetensors"
        save_file(stability_layout(tiny_v1), path, {"modelspec.prediction_type": "epsilon"})
    family = load(path, v_parameterization=True)
    sampler = SAMPLERS["ddim"](family.process)
    assert sampler.config.prediction_type == "v_prediction"  # of sample images
    model = SpecifiedModel(family.architecture, family.process.prediction_type, (512, 512))
    saved = save(family, tmp_path, format, metadata=specification_entries(model, MetadataOptions(), title="x"))
    assert load(saved).process.prediction_type == "v_prediction"  # without the flag
    if saved.is_dir():
        assert (
            json.loads((saved / "scheduler" / "scheduler_config.json").read_text())["prediction_type"] == "v_prediction"
        )
    elif format == "safetensors":
        assert read_raw(saved)[0]["__metadata__"]["modelspec.prediction_type"] == "v"
        assert stated(saved)["scheduler"]["prediction_type"] == "v_prediction"
    else:
        assert stated(saved)["scheduler"]["prediction_type"] == "v_prediction"


# ---- precision, metadata


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("format", FORMATS)
def test_weights_are_saved_in_the_precision_asked_for(folder_v1, tiny_v1, tmp_path, format, dtype):
    family = load(folder_v1)
    path = save(family, tmp_path, format, dtype=dtype)
    found = read_folder(path) if path.is_dir() else networks_of_file(path)
    for part, tensors in networks(tiny_v1).items():
        for key, tensor in tensors.items():
            if key in found[part]:
                assert torch.equal(found[part][key], tensor.to(dtype)), key
    assert family.unet.conv_in.weight.dtype == torch.float32  # training continues as it was


def networks_of_file(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    tensors = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)["state_dict"]
    prefix = "cond_stage_model.transformer.text_model."
    text = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    unet = {"conv_in.weight": tensors["model.diffusion_model.input_blocks.0.0.weight"]}
    vae = {"encoder.conv_in.weight": tensors["first_stage_model.encoder.conv_in.weight"]}
    return {"unet": unet, "vae": vae, "text_encoder": text}


def read_raw(path: Path) -> tuple[dict, bytes]:
    """Header and data of a .safetensors file, by the description of the format."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def test_metadata_stands_in_every_safetensors_file_with_the_hash_of_its_own_data(folder, tmp_path):
    family = load(folder)
    metadata = {"ss_steps": "7", "modelspec.sai_model_spec": "1.0.0", "modelspec.title": "Ünï"}
    single = save(family, tmp_path, "safetensors", metadata=metadata)
    parts = sorted(save(family, tmp_path, "diffusers_safetensors", metadata=metadata).rglob("*.safetensors"))
    assert len(parts) == 3
    for path in (single, *parts):
        header, data = read_raw(path)
        entries = header.pop("__metadata__")
        assert entries["modelspec.hash_sha256"] == f"0x{hashlib.sha256(data).hexdigest()}"
        assert entries["modelspec.title"] == "Ünï"
        assert ("Stability" in entries["modelspec.implementation"]) == (path == single)
        # no gaps, and every number at a multiple of its size, as readers that map the file need it
        ends = sorted(entry["data_offsets"] for entry in header.values())
        assert [start for start, _ in ends] == [0, *(end for _, end in ends[:-1])]
        assert (len(path.read_bytes()) - len(data)) % 8 == 0
        sizes = {"F32": 4, "I64": 8}
        assert all(entry["data_offsets"][0] % sizes[entry["dtype"]] == 0 for entry in header.values())
    assert read_raw(single)[0]["__metadata__"]["ss_steps"] == "7"


def test_the_specifications_entries():
    architecture = "stable-diffusion-v2-768-v"
    model = SpecifiedModel(architecture, "v_prediction", (768, 512), clip_skip=2, timestep_range=(0, 500))
    url = "data:image/jpeg;base64,YWJj"
    texts = MetadataOptions(
        metadata_author="me",
        metadata_tags="a, b",
        metadata_usage_hint="weight 0.8",
        metadata_thumbnail=url,
        metadata_merged_from="one, two",
        metadata_trigger_phrase="a qq cat",
        metadata_preprocessor="canny",
        metadata_is_negative_embedding="true",
    )
    earlier = {
        "modelspec.title": "Old", "modelspec.author": "they", "modelspec.license": "L", "modelspec.hash_sha256": "0x1",
        "ss_steps": "3",
    }  # fmt: skip
    entries = specification_entries(model, texts, title="file", earlier=earlier)
    assert len(entries.pop("modelspec.date")) == len("2024-01-31T12:00:00")
    assert {key.removeprefix("modelspec."): value for key, value in entries.items()} == {
        "sai_model_spec": "1.0.0",
        "architecture": "stable-diffusion-v2-768-v",
        "implementation": "diffusers",
        "resolution": "768x512",
        "prediction_type": "v",
        "encoder_layer": "2",
        "timestep_range": "0,500",
        "title": "Old",
        "author": "me",
        "license": "L",
        "tags": "a, b",
        "usage_hint": "weight 0.8",
        "thumbnail": url,
        "merged_from": "one, two",
        "trigger_phrase": "a qq cat",
        "preprocessor": "canny",
        "is_negative_embedding": "true",
    }
    assert specification_entries(model, MetadataOptions(), title="file")["modelspec.title"] == "file"


# ---- whole or not at all


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import torch
from library.models.options import ModelOptions
from library.models.registry import load_family
source, *targets = sys.argv[1:]
family = load_family(ModelOptions(source))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, resource.RLIM_INFINITY))
for format, target in zip(targets[::2], targets[1::2]):
    try:
        family.save(Path(target), format=format, dtype=torch.float32, metadata={})
    except OSError as error:
        print(target, error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the system has no limit of this kind")
@pytest.mark.skipif(sys.platform == "win32", reason="the system has no limit of this kind")
def test_a_disk_that_is_full_leaves_the_models_before_and_no_rest(folder_v1, tmp_path):
    family = load(folder_v1)
    targets = {format: save(family, tmp_path, format) for format in FORMATS}
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    words = [str(word) for pair in targets.items() for word in pair]
    command = [sys.executable, "-c", FULL_DISK, str(folder_v1), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for target in targets.values():
        assert f"{target} " in done.stdout
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert {path for path in tmp_path.iterdir()} == set(targets.values())


@pytest.mark.parametrize("format", FORMATS)
def test_a_model_is_replaced_by_the_next(folder_v1, tmp_path, format):
    family = load(folder_v1)
    save(family, tmp_path, format)
    family.unet.conv_in.weight.data.fill_(0.5)
    path = save(family, tmp_path, format)
    assert load(path).unet.conv_in.weight.unique().tolist() == [0.5]
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("format", FORMATS)
def test_a_path_that_cannot_be_written_to_is_named(folder_v1, tmp_path, format):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=r"file|Not a directory"):
        save(load(folder_v1), tmp_path / "file", format)


def test_other_peoples_files_are_not_replaced(folder_v1, tmp_path):
    family = load(folder_v1)
    for format in FORMATS:
        path = path_for(tmp_path, format)
        path.mkdir()
        (path / "photo.png").write_text("mine")
        with pytest.raises(OSError, match="not empty and not a model|is a folder"):
            save(family, tmp_path, format)
        assert (path / "photo.png").read_text() == "mine"
        shutil.rmtree(path)
        if not FORMATS[format].ending:
            path.write_text("mine")
            with pytest.raises(OSError, match="is a file"):
                save(family, tmp_path, format)
            assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("save_model_as", "use_safetensors", "source", "expected"),
    [
        (None, False, "model.ckpt", "ckpt"),
        (None, True, "model.ckpt", "safetensors"),
        (None, False, "model.SAFETENSORS", "safetensors"),
        (None, False, "a/folder", "diffusers"),
        (None, True, "owner/name", "diffusers_safetensors"),
        ("ckpt", False, "a/folder", "ckpt"),
        ("ckpt", True, "a/folder", "safetensors"),
        ("diffusers", False, "model.ckpt", "diffusers"),
        ("diffusers", True, "model.ckpt", "diffusers_safetensors"),
        ("safetensors", False, "model.ckpt", "safetensors"),
    ],
)
def test_the_format_is_the_one_asked_for_or_that_of_the_source(save_model_as, use_safetensors, source, expected):
    assert choose_format(save_model_as, use_safetensors=use_safetensors, source=source) == expected


@pytest.mark.parametrize("format", FOLDERS)
def test_a_folder_is_saved_with_weights_of_its_own_kind(folder_v1, tmp_path, format):
    saved = save(load(folder_v1), tmp_path, format)
    assert choose_format(None, use_safetensors=False, source=str(saved)) == format


def test_gradients_and_training_continue_after_a_save(tmp_path):
    family = load(write_folder(make_tiny(False), tmp_path / "source"))
    family.unet.requires_grad_(True)
    before = {key: tensor.clone() for key, tensor in family.unet.state_dict().items()}
    for format in FORMATS:
        save(family, tmp_path, format, dtype=torch.float16)
    assert all(parameter.requires_grad for parameter in family.unet.parameters())
    assert all(torch.equal(tensor, before[key]) for key, tensor in family.unet.state_dict().items())
