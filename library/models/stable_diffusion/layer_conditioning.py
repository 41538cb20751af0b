"""Separate text conditioning for each cross-attention layer of a U-Net (P+, extended textual inversion).

After "P+: Extended Textual Conditioning in Text-to-Image Generation" (Voynov et al., 2303.09522). The U-Net's own
forward passes one tensor to all its layers: here it holds the hidden states of all layers, concatenated along the
first dimension, and a forward pre-hook of each layer takes out that layer's part. No state is kept between calls, so
that activations recomputed in the backward pass (gradient checkpointing) are the same.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from library.cli.errors import UserError
from library.models.layouts import ldm_unet

_PATHS = {"input": (0, "IN{:02d}"), "middle": (1, "MID"), "output": (2, "OUT{:02d}")}


def cross_attention_layers(unet: nn.Module) -> dict[str, str]:
    """Name -> module path of each cross-attention layer, in the order in which they are computed.

    Names are numbered like the Stability layout: `IN01` is its `input_blocks.1`; then `MID`, `OUT03`. SD 1.x and
    2.x have 16. Raises `UserError` for another architecture.
    """
    paths = {path for path, module in unet.named_modules() if isinstance(module, Transformer2DModel)}
    found = []
    for path, ldm_name in ldm_unet.module_names(unet.config).items():  # type: ignore[arg-type]
        if path in paths:
            side, number = re.match(r"(\w+)_blocks?\.(\d+)", ldm_name).groups()  # type: ignore[union-attr]
            order, form = _PATHS[side]
            found.append((order, int(number), form.format(int(number)), path))
    if not paths or len(found) != len(paths):
        raise UserError(
            f"of the U-Net's {len(paths)} cross-attention layers {len(found)} are where Stable Diffusion has them",
            hint="--xti works with Stable Diffusion 1.x and 2.x",
        )
    return {name: path for _, _, name, path in sorted(found)}


class LayerConditioning:
    """Makes a U-Net accept separate hidden states for each cross-attention layer."""

    def __init__(self, unet: nn.Module):
        layers = cross_attention_layers(unet)
        self.num_layers = len(layers)
        for index, path in enumerate(layers.values()):
            hook = partial(_take_own, index, self.num_layers)
            unet.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True)

    def pack(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The `encoder_hidden_states` for the U-Net: (layers x B, tokens, width).

        hidden_states: (layers, B, tokens, width), or (B, tokens, width) for all layers alike.
        """
        if hidden_states.dim() == 3:
            hidden_states = hidden_states.expand(self.num_layers, *hidden_states.shape)
        if len(hidden_states) != self.num_layers:
            raise ValueError(f"hidden states for {len(hidden_states)} layers, the U-Net has {self.num_layers}")
        return hidden_states.flatten(0, 1)


def _take_own(
    index: int, num_layers: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    own = kwargs["encoder_hidden_states"].chunk(num_layers)[index]
    return args, {**kwargs, "encoder_hidden_states": own}
