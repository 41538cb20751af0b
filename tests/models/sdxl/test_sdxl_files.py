"""Stable Diffusion XL is read from and written to files as Diffusers does, under the published keys."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from library.cli.errors import UserError
from library.models.convert import convert
from library.models.layouts.config_metadata import assumed_config, part_section
from library.models.layouts.diffusers_folder import DiffusersFolder
from library.models.layouts.ldm_writing import single_file_tensors
from library.models.layouts.parts import ModelParts, empty_text_encoder, empty_unet, empty_vae
from library.models.options import ModelOptions
from library.models.reading.loading import load_model
from library.models.registry import read_model
from library.models.sdxl.layout import SDXL
from library.models.weights.checkpoint_files import open_weights
from tests.tiny_models import TinySDXL, make_sdxl_pipeline, write_sdxl_folder

# the published configurations, those of their entries that tensors show or that files of this family share
UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280],
    "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "norm_num_groups": 32,
}
VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.13025,
}
CLIP_L = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
BIG_G = {
    **CLIP_L,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
CONFIGS = {"unet": UNET, "vae": VAE, "text_encoder": CLIP_L, "text_encoder_2": BIG_G}

# The keys and shapes of the published base model: how many, the digest of "key (shape)" in order, and some of them.
NUM_KEYS = 2515
KEYS_DIGEST = "0a867b1ad801abb950fba96e265407996506e2145bcbc0d5f102e101a31e7e1a"
SOME_KEYS = [
    "conditioner.embedders.0.transformer.text_model.embeddings.position_ids (1, 77)",
    "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight (3072, 768)",
    "conditioner.embedders.1.model.logit_scale ()",
    "conditioner.embedders.1.model.text_projection (1280, 1280)",
    "conditioner.embedders.1.model.transformer.resblocks.31.attn.in_proj_weight (3840, 1280)",
    "model.diffusion_model.input_blocks.4.1.proj_in.weight (640, 640)",
    "model.diffusion_model.label_emb.0.0.weight (1280, 2816)",
    "model.diffusion_model.label_emb.0.2.bias (1280,)",
]


def networks(model) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of a tiny model or a pipeline by part, those of text encoders without the level `text_model`."""
    return {
        part: {
            key.removeprefix("text_model."): tensor
            for key, tensor in getattr(model, part).state_dict().items()
            if not key.endswith("position_ids")
        }
        for part in ("unet", "vae", "text_encoder", "text_encoder_2")
    }


def read(path: Path, **options) -> ModelParts:
    return read_model(ModelOptions(str(path), **options)).loaded.parts


def read_networks(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    parts = read(path).modules
    return {
        part: {key.removeprefix("text_model."): tensor.to("cpu") for key, tensor in module.state_dict().items()}
        for part, module in parts.items()
    }


def assert_same(found, expected) -> None:
    for part, tensors in expected.items():
        assert found[part].keys() == tensors.keys(), part
        for key, tensor in tensors.items():
            assert torch.equal(found[part][key], tensor), f"{part}: {key}"


def test_a_full_size_file_has_the_published_keys_and_shows_the_published_configurations():
    encoders = {text.name: empty_text_encoder(CONFIGS[text.name], "x", text) for text in SDXL.text_encoders}
    parts = ModelParts(empty_unet(UNET, "x"), empty_vae(VAE, "x"), encoders)
    tensors = single_file_tensors(parts, SDXL, {"prediction_type": "epsilon"}, torch.float16)
    lines = sorted(f"{key} {tensor.shape}" for key, tensor in tensors.items())
    assert set(SOME_KEYS) - set(lines) == set()
    assert len(lines) == NUM_KEYS
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == KEYS_DIGEST
    shapes = {key: torch.empty(tensor.shape, device="meta") for key, tensor in tensors.items()}
    for part, config in CONFIGS.items():
        assert assumed_config(part, part_section(part, shapes, SDXL, "x"), SDXL) == config


def test_the_projection_is_transposed_and_attention_fused_in_a_single_file(tiny_sdxl: TinySDXL, sdxl_file):
    """As OpenCLIP multiplies: `x @ text_projection`, of (width, projection)."""
    tensors = load_file(sdxl_file)
    front = "conditioner.embedders.1.model."
    text = tiny_sdxl.text_encoder_2.state_dict()
    assert torch.equal(tensors[front + "text_projection"], text["text_projection.weight"].T)
    attention = [text[f"text_model.encoder.layers.2.self_attn.{name}_proj.weight"] for name in "qkv"]
    assert torch.equal(tensors[front + "transformer.resblocks.2.attn.in_proj_weight"], torch.cat(attention))
    positions = tensors["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"]
    assert torch.equal(positions, torch.arange(77)[None])


def test_diffusers_reads_a_single_file(tiny_sdxl, sdxl_folder, sdxl_file):
    pipeline = StableDiffusionXLPipeline.from_single_file(
        str(sdxl_file), config=str(sdxl_folder), local_files_only=True, add_watermarker=False
    )
    assert_same(networks(pipeline), networks(tiny_sdxl))


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
def test_a_single_file_is_read_as_it_was_written(tiny_sdxl, sdxl_folder, sdxl_file, tmp_path, ending):
    path = sdxl_file
    if ending == ".ckpt":
        path = tmp_path / "model.ckpt"
        torch.save({"state_dict": load_file(sdxl_file)}, path)
    assert_same(read_networks(path), networks(tiny_sdxl))
    parts = read(path)
    for name in ("transformer_layers_per_block", "attention_head_dim", "projection_class_embeddings_input_dim"):
        assert parts.unet.config[name] == tiny_sdxl.unet.config[name]
    assert parts.vae.config.scaling_factor == 0.13025
    assert parts.text_encoders["text_encoder_2"].config.projection_dim == 48
    assert parts.text_encoders["text_encoder"].text_projection is None


def test_shards_and_half_precision_of_a_folder_are_read(tiny_sdxl, tmp_path):
    write_sdxl_folder(tiny_sdxl, tmp_path / "shards", max_shard_size="1MB")
    assert len(list((tmp_path / "shards" / "unet").glob("*.safetensors"))) > 1
    assert_same(read_networks(tmp_path / "shards"), networks(tiny_sdxl))
    write_sdxl_folder(tiny_sdxl, tmp_path / "fp16", max_shard_size="1MB", variant="fp16")
    assert_same(read_networks(tmp_path / "fp16"), networks(tiny_sdxl))


def test_a_shard_that_is_missing_or_cut_off_is_named(tiny_sdxl, tmp_path):
    folder = write_sdxl_folder(tiny_sdxl, tmp_path / "model", max_shard_size="1MB")
    first, second = sorted((folder / "unet").glob("*.safetensors"))[:2]
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    first.unlink()
    with pytest.raises(UserError, match=f"{index} names {first.name}, which does not exist"):
        read(folder)
    first.write_bytes(second.read_bytes())
    with pytest.raises(UserError, match=f"{first} lacks "):
        read(folder)
    index.write_text(json.dumps({"weight_map": {"a": "../a.safetensors"}}))
    with pytest.raises(UserError, match=f"{index} is no index of the shards"):
        read(folder)


@pytest.mark.parametrize("format", ["diffusers_safetensors", "diffusers"])
def test_diffusers_reads_a_folder(tiny_sdxl, sdxl_file, tmp_path, format):
    convert([str(sdxl_file), str(tmp_path / "saved"), "--format", format])
    pipeline = StableDiffusionXLPipeline.from_pretrained(tmp_path / "saved", local_files_only=True)
    assert_same(networks(pipeline), networks(tiny_sdxl))
    expected = make_sdxl_pipeline(tiny_sdxl)
    prompt = "a photograph of a cat, !"
    with torch.no_grad():
        found, wanted = (each.encode_prompt(prompt, device="cpu") for each in (pipeline, expected))
    for index in (0, 2):  # hidden states of both encoders, and the pooled output
        torch.testing.assert_close(found[index], wanted[index], atol=1e-6, rtol=0)
    assert pipeline.default_sample_size * pipeline.vae_scale_factor == 1024  # the file does not say it
    assert type(pipeline.scheduler).__name__ == "EulerDiscreteScheduler"
    assert pipeline.vae.config.scaling_factor == 0.13025


def test_a_model_in_half_precision_with_its_metadata(tiny_sdxl, sdxl_folder, tmp_path):
    path = tmp_path / "half.safetensors"
    convert([str(sdxl_folder), str(path), "--save_precision", "fp16"])
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base"
    assert (metadata["modelspec.resolution"], metadata["modelspec.prediction_type"]) == ("1024x1024", "epsilon")
    for key, tensor in load_file(path).items():
        assert tensor.dtype == (torch.float16 if tensor.is_floating_point() else torch.int64), key
    halves = {part: {key: x.half().float() for key, x in each.items()} for part, each in networks(tiny_sdxl).items()}
    assert_same(read_networks(path), halves)


@pytest.mark.parametrize("source", ["sdxl_folder", "sdxl_file"])
def test_parts_are_read_in_the_precision_they_are_kept_in(source, request):
    """A U-Net that is kept in 5 GB is never one of 10 GB on the way."""
    path = request.getfixturevalue(source)
    opened = DiffusersFolder(path) if path.is_dir() else open_weights(path)
    exact = load_model(opened, SDXL, ModelOptions()).parts
    dtypes = {"unet": torch.float16, "text_encoder": torch.bfloat16}
    rounded = load_model(opened, SDXL, ModelOptions(), dtypes).parts
    for name, module in exact.modules.items():
        dtype = dtypes.get(name.removesuffix("_2"), torch.float32)
        found = rounded.modules[name].state_dict()
        for key, tensor in module.state_dict().items():
            assert found[key].dtype == dtype and torch.equal(found[key], tensor.to(dtype)), f"{name}: {key}"


def test_a_file_of_a_v_prediction_model_has_the_marks_that_image_programs_look_for(sdxl_folder, tmp_path):
    convert([str(sdxl_folder), str(tmp_path / "v.safetensors"), "--v_parameterization"])
    found = load_file(tmp_path / "v.safetensors")
    assert "v_pred" in found and "ztsnr" not in found and found["v_pred"].numel() == 0


def test_a_vae_that_says_no_scale_takes_that_of_the_family(sdxl_folder, sdxl_file, file_v1, tmp_path):
    """A VAE alone: it may be one of Stable Diffusion XL, or one of Stable Diffusion."""
    front = "first_stage_model."
    alone = {key.removeprefix(front): value for key, value in load_file(sdxl_file).items() if key.startswith(front)}
    save_file(alone, tmp_path / "vae.safetensors")
    vae = str(tmp_path / "vae.safetensors")
    for model, scale in ((sdxl_folder, 0.13025), (sdxl_file, 0.13025), (file_v1, 0.18215)):
        assert read(model, vae=vae).vae.config.scaling_factor == scale


def test_what_a_model_consists_of(sdxl_folder, sdxl_file, capsys):
    for path in (sdxl_folder, sdxl_file):
        convert([str(path), "--inspect"])
        said = capsys.readouterr().out
        assert f"{path}: Stable Diffusion XL" in said
        assert "channels 32, 64, 64" in said and "first text encoder (CLIP ViT-L)" in said
        assert "second text encoder (OpenCLIP ViT-bigG)" in said and "4 layers; width 64" in said
        assert "other keys" not in said


def test_parts_of_another_model_are_refused(tiny_sdxl, sdxl_folder, tmp_path):
    (tmp_path / "model").mkdir()
    for part in sdxl_folder.iterdir():
        (tmp_path / "model" / part.name).symlink_to(part)
    (tmp_path / "model" / "text_encoder_2").unlink()
    config = tiny_sdxl.text_encoder_2.config.to_dict() | {"projection_dim": 32}
    other = type(tiny_sdxl.text_encoder_2)(type(tiny_sdxl.text_encoder_2.config)(**config))
    other.save_pretrained(tmp_path / "model" / "text_encoder_2")
    with pytest.raises(UserError, match="expects pooled text of width 48, the second text encoder .* gives 32"):
        read(tmp_path / "model")
