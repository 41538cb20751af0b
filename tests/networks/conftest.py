"""Tiny random models of the same build as the real ones."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel


class WrappedTextEncoder(nn.Module):
    """Has its transformer at `text_model`, as the model families have."""

    def __init__(self, text_model):
        super().__init__()
        self.text_model = text_model

    def forward(self, token_ids):
        return self.text_model(token_ids)[0]


@pytest.fixture(autouse=True)
def seeded():
    """Fixed seed; one thread, because layers this small only wait for a second one."""
    torch.manual_seed(0)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def unet():
    model = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=16,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    return model.eval().requires_grad_(False)


@pytest.fixture
def clip_model():
    config = CLIPTextConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=16,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return CLIPTextModel(config).eval().requires_grad_(False)


@pytest.fixture
def text_encoder(clip_model):
    return WrappedTextEncoder(getattr(clip_model, "text_model", clip_model))


@pytest.fixture
def predict(unet, text_encoder):
    """Runs text encoder and U-Net on fixed inputs -> (2, 4, 8, 8)."""
    latents, timesteps = torch.randn(2, 4, 8, 8), torch.tensor([3, 700])
    token_ids = torch.randint(3, 64, (2, 7))

    def run(unet=unet, text_encoder=text_encoder):
        return unet(latents.to(unet.dtype), timesteps, text_encoder(token_ids)).sample

    return run


@pytest.fixture
def randomize():
    """Gives an adapter that does nothing yet something to do."""

    def fill(network, std=0.1):
        with torch.no_grad():
            for layer in network.layers():
                layer.lora_up.weight.normal_(std=std)
        return network

    return fill
