"""CLIP's text encoder: hidden states with clip skip, gradient checkpointing, configuration."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection


class TextEncoder(nn.Module):
    """Wraps CLIP's text transformer, so that its layers have the same names under every version of `transformers`.

    Older versions keep the transformer in `CLIPTextModel.text_model`, newer ones made it the model itself. The keys
    of LoRA files contain that level. `text_projection`: of the pooled output, where the model has one.
    """

    config: Any  # CLIPTextConfig
    text_model: Any  # of `transformers`, whose class depends on its version
    text_projection: nn.Linear | None

    def __init__(self, model: CLIPTextModel | CLIPTextModelWithProjection):
        super().__init__()
        self.config = model.config
        self.text_model = getattr(model, "text_model", model)
        self.text_projection = getattr(model, "text_projection", None)

    @property
    def device(self) -> torch.device:
        return self.text_model.final_layer_norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.text_model.final_layer_norm.weight.dtype

    @property
    def token_embedding(self) -> nn.Embedding:
        """The token embedding table: a row for each id of the vocabulary."""
        return self.text_model.embeddings.token_embedding

    def forward(self, input_ids: torch.Tensor, clip_skip: int = 1) -> torch.Tensor:
        """Token ids (B, 77) -> hidden states of the layer `clip_skip` from the end, after the final norm (B, 77, D)."""
        if clip_skip == 1:
            return self.text_model(input_ids=input_ids).last_hidden_state
        states, _ = self._states_of_layer(clip_skip, input_ids)
        return self.text_model.final_layer_norm(states)

    def penultimate(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids (B, 77) -> hidden states of the last layer but one, and of the last one; each (B, 77, D).

        Only the latter are after the final norm.
        """
        return self._states_of_layer(2, input_ids)

    def _states_of_layer(self, from_end: int, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states (B, 77, D) of a layer, without the final norm, and the output of the model."""
        states: list[torch.Tensor] = []
        layer = self.text_model.encoder.layers[-from_end]
        # not `output_hidden_states`: it depends on the classes of modules, which FSDP changes
        hook = layer.register_forward_hook(lambda module, given, output: states.append(output))
        try:
            last = self.text_model(input_ids=input_ids).last_hidden_state
        finally:
            hook.remove()
        output = states[0]
        return output[0] if isinstance(output, tuple) else output, last

    def gradient_checkpointing_enable(self) -> None:
        """Gradient checkpointing: recomputes each layer in the backward pass, in train mode only.

        Not reentrant: a reentrant checkpoint gives no gradients to adapters inside a layer whose input, coming from
        frozen embeddings, requires none.
        """
        for module in self.text_model.modules():
            if hasattr(module, "gradient_checkpointing"):
                module._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
                module.gradient_checkpointing = True


# the entries of a config.json that define the architecture
_CONFIG_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "hidden_act",
    "layer_norm_eps",
    "attention_dropout",
    "projection_dim",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def config_entries(config: CLIPTextConfig) -> dict[str, Any]:
    """The entries of a config.json that define the text encoder's architecture."""
    return {key: getattr(config, key) for key in _CONFIG_KEYS if hasattr(config, key)}


def build_text_encoder(config: Mapping[str, Any], has_projection: bool = False) -> TextEncoder:
    """A text encoder with random weights for the entries of a config.json."""
    known = {key: config[key] for key in _CONFIG_KEYS if key in config}
    build = CLIPTextModelWithProjection if has_projection else CLIPTextModel
    return TextEncoder(build(CLIPTextConfig(**known)))


def restore_position_ids(encoder: TextEncoder) -> None:
    """Fills the buffer `position_ids`, which no file holds, after the encoder was built on the device "meta"."""
    embeddings = encoder.text_model.embeddings
    num_positions = embeddings.position_embedding.num_embeddings
    embeddings.register_buffer("position_ids", torch.arange(num_positions).unsqueeze(0), persistent=False)
