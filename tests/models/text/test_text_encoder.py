"""The wrapper gives transformers' numbers under stable names, and gradients reach adapters inside a frozen encoder."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from library.models.text.text_encoder import TextEncoder, build_text_encoder

SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 77,
}


@pytest.fixture
def encoder() -> TextEncoder:
    torch.manual_seed(0)
    return build_text_encoder(SMALL).eval().requires_grad_(False)


def test_layers_have_the_names_that_adapter_files_use(encoder):
    names = {name: type(module).__name__ for name, module in encoder.named_modules()}
    assert names["text_model.encoder.layers.0.self_attn"] == "CLIPAttention"
    assert names["text_model.encoder.layers.1.mlp"] == "CLIPMLP"
    assert names["text_model.encoder.layers.0.self_attn.q_proj"] == "Linear"


def test_a_model_that_keeps_its_transformer_one_level_down_is_unwrapped():
    class OlderModel(nn.Module):
        def __init__(self):
            super().__init__()
            self.text_model = CLIPTextModel(CLIPTextConfig(**SMALL))
            self.config = self.text_model.config

    encoder = TextEncoder(OlderModel())
    assert "text_model.encoder.layers.0.self_attn.q_proj" in dict(encoder.named_modules())


def test_output_is_the_last_hidden_state_after_the_final_norm(encoder):
    input_ids = torch.randint(0, 50, (3, 77))
    hidden_states = encoder(input_ids)
    assert hidden_states.shape == (3, 77, 16)
    norm = encoder.text_model.final_layer_norm
    assert torch.allclose(norm.weight.new_zeros(()), hidden_states.mean(-1), atol=1e-5)  # a fresh norm centres
    tokens_changed_later = input_ids.clone()
    tokens_changed_later[:, 40:] = 1
    assert torch.allclose(encoder(tokens_changed_later)[:, :40], hidden_states[:, :40], atol=1e-5)  # causal


def adapter_gradient(encoder: TextEncoder) -> torch.Tensor:
    """The gradient of a linear adapter added to one layer's output, as adapters hook in."""
    torch.manual_seed(1)
    layer = encoder.text_model.encoder.layers[0].self_attn.q_proj
    adapter = nn.Linear(16, 16)
    hook = layer.register_forward_hook(lambda module, inputs, output: output + adapter(inputs[0]))
    encoder(torch.arange(77)[None] % 50).square().mean().backward()
    hook.remove()
    return adapter.weight.grad


def test_gradients_reach_adapters_through_checkpoints_of_a_frozen_encoder(encoder):
    plain = adapter_gradient(encoder)
    calls = []
    counter = encoder.text_model.encoder.layers[0].mlp.fc1.register_forward_hook(lambda *_: calls.append(1))
    encoder.gradient_checkpointing_enable()
    encoder.train()
    checkpointed = adapter_gradient(encoder)
    counter.remove()
    assert len(calls) == 2  # computed again in the backward pass
    assert plain.abs().max() > 0
    assert torch.allclose(checkpointed, plain, atol=1e-7)


def test_device_and_precision_follow_the_weights(encoder):
    assert encoder.dtype == torch.float32 and encoder.device.type == "cpu"
    assert encoder.to(torch.bfloat16).dtype == torch.bfloat16
