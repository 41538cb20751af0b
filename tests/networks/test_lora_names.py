"""If names or shapes differ, other programs silently ignore the parts of an adapter they do not know."""

import hashlib

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from networks.lora import create_network

SD1_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
SD2_TEXT = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
SD1_UNET = {"cross_attention_dim": 768, "attention_head_dim": 8}
SD2_UNET = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20]}
MODELS = {
    "sd15": (SD1_TEXT, SD1_UNET),
    "sd21": (SD2_TEXT, SD2_UNET),
    "sd21_linear_projection": (SD2_TEXT, {**SD2_UNET, "use_linear_projection": True}),
}
LINEAR, WITH_CONV = {}, {"conv_dim": "2", "conv_alpha": "1"}

# layers, parameters and SHA-256 of the sorted lines "name (down shape) (up shape)", measured on the trainer whose files
# other programs were written for; rank 4
MEASURED = [
    ("sd15", LINEAR, 264, 2359296, "0f0d8ab27f3438da12ec91cf9616c3cbc46a211ec9b71b81ce8e3038aa7a2158"),
    ("sd15", WITH_CONV, 350, 3778816, "a6532a317f215456b07efdadd41afa6e90f29936f4e17f2fb993371a2366eb26"),
    ("sd21", LINEAR, 330, 3424256, "64c6f3623556abaec41bf61c8f5ce76be315c12499931f33e02dd9996463a27c"),
    ("sd21", WITH_CONV, 416, 4843776, "a93043a737e29ed512aa1f4c97ede9dd59b02f47f707becc33234029cce40b2f"),
    (
        "sd21_linear_projection",
        LINEAR,
        330,
        3424256,
        "66f8030e902e5958cb292f28a381eb9f787a7723056034f29803c22a0a342ca2",
    ),
    (
        "sd21_linear_projection",
        WITH_CONV,
        416,
        4843776,
        "ef4d034bc7f073de7fbddd40d14c013511a138645d8ce7e0c1c8b14f6ddabaa1",
    ),
]


def make_network(model, **network_args):
    text, unet = MODELS[model]
    with torch.device("meta"):
        text_encoder = CLIPTextModel(CLIPTextConfig(**text))
        denoiser = UNet2DConditionModel(sample_size=64, block_out_channels=(320, 640, 1280, 1280), **unet)
        return create_network(1.0, 4, 1, None, text_encoder, denoiser, neuron_dropout=None, **network_args)


@pytest.mark.parametrize(("model", "network_args", "num_layers", "num_parameters", "digest"), MEASURED)
def test_names_and_shapes_are_those_other_programs_read(model, network_args, num_layers, num_parameters, digest):
    state = make_network(model, **network_args).state_dict()
    names = {key.partition(".")[0] for key in state}
    lines = sorted(
        f"{name} {tuple(state[f'{name}.lora_down.weight'].shape)} {tuple(state[f'{name}.lora_up.weight'].shape)}"
        for name in names
    )
    assert len(names) == num_layers
    assert len(state) == 3 * num_layers
    assert sum(tensor.numel() for key, tensor in state.items() if not key.endswith(".alpha")) == num_parameters
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == digest


def test_ranks_and_alphas_go_to_linear_layers_and_convolutions():
    layers = {layer.name: layer for layer in make_network("sd15", **WITH_CONV).layers()}
    attention = layers["lora_te_text_model_encoder_layers_0_self_attn_q_proj"]
    downsampler = layers["lora_unet_down_blocks_0_downsamplers_0_conv"]
    shortcut = layers["lora_unet_up_blocks_0_resnets_0_conv_shortcut"]
    assert attention.lora_down.weight.shape == (4, 768)
    assert attention.scale == 1 / 4
    assert downsampler.lora_down.weight.shape == (2, 320, 3, 3)
    assert downsampler.lora_down.stride == (2, 2)
    assert downsampler.scale == 1 / 2
    assert shortcut.lora_down.weight.shape == (4, 2560, 1, 1)
    assert "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0" in layers
    assert not any("conv_in" in name or "time_embedding" in name for name in layers)


def test_the_text_encoder_is_named_alike_wrapped_and_bare(text_encoder, clip_model, unet):
    wrapped = create_network(1.0, 4, 1, None, text_encoder, unet)
    bare = create_network(1.0, 4, 1, None, clip_model, unet)
    alone_in_a_list = create_network(1.0, 4, 1, None, [text_encoder], unet)
    assert set(wrapped.state_dict()) == set(bare.state_dict()) == set(alone_in_a_list.state_dict())
    assert "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight" in wrapped.state_dict()


def test_larger_convolutions_are_left_out_unless_asked_for():
    class Transformer2DModel(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj_in, self.mix = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3)

    unet = nn.Sequential(Transformer2DModel())
    assert [layer.name for layer in create_network(1.0, 4, 1, None, [], unet).layers()] == ["lora_unet_0_proj_in"]
    with_convolutions = create_network(1.0, 4, 1, None, [], unet, conv_dim="2")
    assert [(layer.name, layer.rank) for layer in with_convolutions.layers()] == [
        ("lora_unet_0_proj_in", 4),
        ("lora_unet_0_mix", 2),
    ]


def test_two_text_encoders_are_numbered(text_encoder, clip_model, unet):
    network = create_network(1.0, 4, 1, None, [text_encoder, clip_model], unet)
    names = [layer.name for layer in network.text_encoder_loras]
    assert len(names) == 2 * 2 * 6
    assert {name[:20] for name in names} == {"lora_te1_text_model_", "lora_te2_text_model_"}
