"""Single files in the Stability layout give the same networks as the Diffusers models they were made from."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from library.cli.errors import UserError
from library.models.layouts import ldm_text, ldm_unet, ldm_vae
from library.models.layouts.ldm_keys import Section, TensorSlice, norm_groups, rename_key
from library.models.layouts.ldm_layout import load_single_file
from library.models.stable_diffusion.layout import SD_1, SD_2, layout_of
from library.models.weights.checkpoint_files import open_weights
from library.models.weights.model_kinds import is_v2

CROSS, DOWN, UP = "CrossAttnDownBlock2D", "DownBlock2D", "UpBlock2D"
UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "down_block_types": [CROSS, CROSS, CROSS, DOWN],
    "up_block_types": [UP, "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "norm_num_groups": 32,
}
UNET_V1 = {**UNET, "cross_attention_dim": 768, "attention_head_dim": 8, "use_linear_projection": False}
UNET_V2 = {**UNET, "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
}
TEXT = {"vocab_size": 49408, "max_position_embeddings": 77, "layer_norm_eps": 1e-5}
TEXT_V1 = {
    **TEXT,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
}
TEXT_V2 = {
    **TEXT,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
}
TEXT_OF_SD2 = SD_2.text_encoders[0]


def on_meta(build, config):
    with torch.device("meta"):
        return build(config)


def section(tensors) -> Section:
    return Section("model.safetensors", "part", "prefix.", tensors)


def renamed(model, modules):
    return {rename_key(name, modules): tensor for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(("config", "is_v2"), [(UNET_V1, False), (UNET_V2, True)], ids=["sd15", "sd21"])
def test_the_full_size_unets_are_inferred_from_their_shapes(config, is_v2):
    unet = on_meta(UNet2DConditionModel.from_config, config)
    tensors = renamed(unet, ldm_unet.module_names(config))
    assert len(tensors) == 686
    assert ldm_unet.infer_config(section(tensors), layout_of(is_v2)) == config


def test_names_of_the_full_size_unet_are_those_of_the_layout():
    names = ldm_unet.module_names(UNET_V1)
    assert names["down_blocks.0.resnets.1.time_emb_proj"] == "input_blocks.2.0.emb_layers.1"
    assert names["down_blocks.2.downsamplers.0.conv"] == "input_blocks.9.0.op"
    assert names["down_blocks.3.resnets.1.conv2"] == "input_blocks.11.0.out_layers.3"
    assert names["mid_block.attentions.0"] == "middle_block.1"
    assert names["up_blocks.0.upsamplers.0.conv"] == "output_blocks.2.1.conv"
    assert names["up_blocks.1.upsamplers.0.conv"] == "output_blocks.5.2.conv"
    assert names["up_blocks.3.attentions.2"] == "output_blocks.11.1"
    assert len(set(names.values())) == len(names)


# Written out, because files that the tests make from the tables themselves would hide a wrong row.


def test_every_kind_of_layer_of_the_unet_has_its_name_in_the_layout():
    names = ldm_unet.module_names(UNET_V1)
    resnet = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1"}
    resnet |= {"norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
    for ours, theirs in resnet.items():
        assert names[f"down_blocks.1.resnets.0.{ours}"] == f"input_blocks.4.0.{theirs}"
        assert names[f"mid_block.resnets.1.{ours}"] == f"middle_block.2.{theirs}"
        assert names[f"up_blocks.2.resnets.1.{ours}"] == f"output_blocks.7.0.{theirs}"
    ends = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    ends |= {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
    assert ends.items() <= names.items()


def test_every_kind_of_layer_of_the_vae_has_its_name_in_the_layout():
    names = ldm_vae.module_names(VAE)
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    for ours, theirs in attention.items():
        assert names[f"decoder.mid_block.attentions.0.{ours}"] == f"decoder.mid.attn_1.{theirs}"
    assert names["encoder.mid_block.resnets.1"] == "encoder.mid.block_2"
    assert names["encoder.down_blocks.2.resnets.0"] == "encoder.down.2.block.0"
    assert names["encoder.down_blocks.2.resnets.0.conv_shortcut"] == "encoder.down.2.block.0.nin_shortcut"
    assert names["decoder.up_blocks.0.resnets.2"] == "decoder.up.3.block.2"
    assert names["decoder.up_blocks.0.upsamplers.0.conv"] == "decoder.up.3.upsample.conv"
    assert names["decoder.conv_norm_out"] == "decoder.norm_out"
    assert rename_key("decoder.conv_out.bias", names) == "decoder.conv_out.bias"
    assert rename_key("encoder.down_blocks.0.resnets.1.norm2.bias", names) == "encoder.down.0.block.1.norm2.bias"


def test_every_kind_of_layer_of_open_clip_has_its_place():
    expected = {
        "embeddings.token_embedding.weight": TensorSlice("token_embedding.weight"),
        "embeddings.position_embedding.weight": TensorSlice("positional_embedding"),
        "final_layer_norm.bias": TensorSlice("ln_final.bias"),
        "encoder.layers.5.layer_norm1.weight": TensorSlice("transformer.resblocks.5.ln_1.weight"),
        "encoder.layers.5.layer_norm2.bias": TensorSlice("transformer.resblocks.5.ln_2.bias"),
        "encoder.layers.5.mlp.fc1.weight": TensorSlice("transformer.resblocks.5.mlp.c_fc.weight"),
        "encoder.layers.5.mlp.fc2.bias": TensorSlice("transformer.resblocks.5.mlp.c_proj.bias"),
        "encoder.layers.5.self_attn.q_proj.weight": TensorSlice("transformer.resblocks.5.attn.in_proj_weight", 0),
        "encoder.layers.5.self_attn.k_proj.bias": TensorSlice("transformer.resblocks.5.attn.in_proj_bias", 1),
        "encoder.layers.5.self_attn.v_proj.weight": TensorSlice("transformer.resblocks.5.attn.in_proj_weight", 2),
        "encoder.layers.5.self_attn.out_proj.bias": TensorSlice("transformer.resblocks.5.attn.out_proj.bias"),
    }
    assert ldm_text.tensor_slices(expected, TEXT_OF_SD2) == expected
    stacked = {"x": torch.arange(12.0).reshape(6, 2)}
    assert TensorSlice("x", 1).take(stacked).tolist() == [[4, 5], [6, 7]]


def test_the_full_size_vae_is_inferred_from_its_shapes():
    vae = on_meta(AutoencoderKL.from_config, VAE)
    tensors = renamed(vae, ldm_vae.module_names(VAE))
    assert len(tensors) == 248
    assert {"encoder.down.1.block.0.nin_shortcut.weight", "decoder.up.3.block.2.conv2.bias"} <= set(tensors)
    assert {"decoder.mid.attn_1.proj_out.weight", "decoder.up.1.upsample.conv.weight"} <= set(tensors)
    assert "decoder.up.0.upsample.conv.weight" not in tensors  # the finest level is not enlarged
    assert ldm_vae.infer_config(section(tensors), 0.18215) == VAE


def text_tensors(config):
    model = on_meta(CLIPTextModel, CLIPTextConfig(**config))
    return {key.removeprefix("text_model."): tensor for key, tensor in model.state_dict().items()}


def test_the_full_size_text_encoder_of_sd1_is_inferred_from_its_shapes():
    assert ldm_text.infer_config(section(text_tensors(TEXT_V1)), SD_1.text_encoders[0]) == TEXT_V1


@pytest.mark.parametrize("num_blocks", [24, 23])
def test_the_full_size_text_encoder_of_sd2_has_23_layers_whether_the_unused_one_is_there_or_not(num_blocks):
    full = text_tensors({**TEXT_V2, "num_hidden_layers": num_blocks})
    tensors = {part.key: full[name] for name, part in ldm_text.tensor_slices(full, TEXT_OF_SD2).items()}
    assert ldm_text.infer_config(section(tensors), TEXT_OF_SD2) == TEXT_V2


@pytest.mark.parametrize(("channels", "groups"), [([320, 640], 32), ([48, 96], 16), ([24, 40], 8), ([64, 30], 2)])
def test_norm_groups_divide_all_channels(channels, groups):
    assert norm_groups(channels) == groups


# ---- files of tiny models


def assert_same_outputs(parts, original):
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    text = torch.randn(2, 77, 64, generator=generator)
    pixels = torch.rand(1, 3, 16, 16, generator=generator) * 2 - 1
    input_ids = torch.randint(0, 49000, (2, 77), generator=generator)
    timesteps = torch.tensor([3, 900])
    with torch.no_grad():
        expected = original.unet(latents, timesteps, text).sample
        torch.testing.assert_close(parts.unet(latents, timesteps, text).sample, expected, atol=1e-5, rtol=0)
        expected = original.vae.encode(pixels).latent_dist.parameters
        torch.testing.assert_close(parts.vae.encode(pixels).latent_dist.parameters, expected, atol=1e-5, rtol=0)
        expected = original.vae.decode(latents).sample
        torch.testing.assert_close(parts.vae.decode(latents).sample, expected, atol=1e-5, rtol=0)
        expected = original.text_encoder(input_ids).last_hidden_state
        torch.testing.assert_close(parts.text_encoders["text_encoder"](input_ids), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
def test_both_kinds_of_file_give_the_original_outputs(tiny, stability_layout, tmp_path, ending):
    path = tmp_path / f"model{ending}"
    tensors = stability_layout(tiny)
    if ending == ".ckpt":
        torch.save({"state_dict": tensors, "epoch": 1, "global_step": 2}, path)
    else:
        save_file(tensors, path)
    parts = load_single_file(open_weights(path), layout_of(tiny.is_v2))
    assert_same_outputs(parts, tiny)
    for module in parts.modules.values():
        assert not any(part.training for part in module.modules())
        assert not any(parameter.requires_grad for parameter in module.parameters())
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


def test_keys_of_other_things_are_left_aside(tiny_v1, stability_layout, tmp_path):
    tensors = stability_layout(tiny_v1)
    averaged = {"model_ema.decay": torch.tensor(0.9), "model_ema.diffusion_modelout2bias": torch.zeros(4)}
    extras = {
        **averaged,
        "alphas_cumprod": torch.zeros(1000),
        "first_stage_model.loss.logvar": torch.zeros(1),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
        "cond_stage_model.logit_scale": torch.zeros(1),
    }
    save_file({**tensors, **extras}, tmp_path / "model.safetensors")
    assert_same_outputs(load_single_file(open_weights(tmp_path / "model.safetensors"), SD_1), tiny_v1)


def test_sd1_files_without_the_level_text_model_are_read(tiny_v1, stability_layout, tmp_path):
    tensors = {key.replace(".text_model.", "."): value for key, value in stability_layout(tiny_v1).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    assert_same_outputs(load_single_file(open_weights(tmp_path / "model.safetensors"), SD_1), tiny_v1)


def load_with(tensors, path):
    save_file(tensors, path)
    file = open_weights(path)
    return load_single_file(file, layout_of(is_v2(file.tensors)))


def test_missing_keys_of_all_parts_are_named_together_with_the_file(tiny, stability_layout, tmp_path):
    tensors = stability_layout(tiny)
    dropped = [
        "model.diffusion_model.middle_block.2.in_layers.2.weight",
        "model.diffusion_model.out.0.bias",
        "first_stage_model.post_quant_conv.bias",
    ]
    with pytest.raises(UserError) as caught:
        load_with({key: value for key, value in tensors.items() if key not in dropped}, tmp_path / "some.safetensors")
    text = str(caught.value)
    assert "some.safetensors lacks 2 of the" in text and "keys of the U-Net" in text
    assert "lacks 1 of the" in text and "keys of the VAE" in text
    assert all(key in text for key in dropped)


@pytest.mark.parametrize(
    "prefix",
    [
        "model.diffusion_model.input_blocks.1.0.",
        "model.diffusion_model.input_blocks.2.",
        "model.diffusion_model.output_blocks.",
        "first_stage_model.encoder.down.1.",
        "first_stage_model.",
        "cond_stage_model.transformer.text_model.encoder.layers.0.",
        "cond_stage_model.transformer.text_model.final",
    ],
)
def test_a_file_without_a_whole_section_is_a_user_error(tiny_v1, stability_layout, tmp_path, prefix):
    tensors = {key: value for key, value in stability_layout(tiny_v1).items() if not key.startswith(prefix)}
    with pytest.raises(UserError) as caught:
        load_with(tensors, tmp_path / "some.safetensors")
    assert "some.safetensors" in str(caught.value)


def test_a_unet_with_more_than_stable_diffusion_has_is_refused(tiny_v1, stability_layout, tmp_path):
    tensors = stability_layout(tiny_v1)
    tensors["model.diffusion_model.label_emb.0.0.weight"] = torch.zeros(4, 4)
    with pytest.raises(UserError, match="holds 1 key that the U-Net does not have: model.diffusion_model.label_emb"):
        load_with(tensors, tmp_path / "some.safetensors")


def test_a_tensor_of_another_shape_is_named(tiny_v1, stability_layout, tmp_path):
    tensors = stability_layout(tiny_v1)
    tensors["model.diffusion_model.middle_block.1.norm.weight"] = torch.zeros(63)
    with pytest.raises(UserError, match=r"mid_block.attentions.0.norm.weight has the shape \(63,\) instead of \(64,\)"):
        load_with(tensors, tmp_path / "some.safetensors")


def test_a_quantised_file_is_refused_and_half_precision_is_widened(tiny_v1, stability_layout, tmp_path):
    tensors = stability_layout(tiny_v1)
    halves = {key: value.half() for key, value in tensors.items()}
    parts = load_with(halves, tmp_path / "half.safetensors")
    assert parts.unet.conv_in.weight.dtype == torch.float32
    assert torch.equal(parts.unet.conv_in.weight, tiny_v1.unet.conv_in.weight.half().float())
    tensors["first_stage_model.quant_conv.bias"] = torch.zeros(8, dtype=torch.int8)
    with pytest.raises(UserError, match="int8"):
        load_with(tensors, tmp_path / "some.safetensors")


def test_a_loaded_model_does_not_hang_on_its_file(tiny_v1, stability_layout, tmp_path):
    path = tmp_path / "model.safetensors"
    parts = load_with(stability_layout(tiny_v1), path)
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert_same_outputs(parts, tiny_v1)
