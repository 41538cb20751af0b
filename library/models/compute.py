"""Attention (PyTorch's, xformers', or chunked, which needs less memory), fp8 storage of weights, torch.compile."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from library.cli.errors import UserError, first_line
from library.models.options import MemoryOptions

logger = logging.getLogger(__name__)

_CHUNK_ELEMENTS = 2**24  # of the attention matrix in memory at once: 64 MiB in float32


def chunked_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, chunk_elements: int = _CHUNK_ELEMENTS
) -> torch.Tensor:
    """Attention (B, heads, N, d) of queries (B, heads, N, d) to M keys and values, in chunks of queries.

    The attention matrix, N x M, is never in memory as a whole; in the backward pass each chunk is recomputed.
    After "Self-attention Does Not Need O(n^2) Memory" (Rabe and Staats, 2112.05682), whose chunks of keys are not
    needed at the lengths of images.
    """
    batch_size, heads, num_keys = key.shape[:3]
    length = max(1, chunk_elements // (batch_size * heads * num_keys))
    chunks = query.split(length, dim=2)
    if torch.is_grad_enabled() and len(chunks) > 1:
        return torch.cat([checkpoint(_attend, each, key, value, use_reentrant=False) for each in chunks], dim=2)
    return torch.cat([_attend(each, key, value) for each in chunks], dim=2)


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype) @ value


class ChunkedAttention:
    """`chunked_attention` for the attention modules of Diffusers' U-Nets and VAEs, without masks."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        # the U-Nets and VAEs of Stable Diffusion 1.x and 2.x have none of these
        assert attention_mask is None and attn.spatial_norm is None and not attn.norm_cross
        residual, shape = hidden_states, hidden_states.shape
        if hidden_states.ndim == 4:  # an image (B, C, H, W), in the VAE
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for projected in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        attended = chunked_attention(query, key, value).transpose(1, 2).flatten(2)
        output = attn.to_out[1](attn.to_out[0](attended))
        if len(shape) == 4:
            output = output.transpose(1, 2).reshape(shape)
        if attn.residual_connection:
            output = output + residual
        return output / attn.rescale_output_factor


def set_attention(modules: tuple[nn.Module, ...], options: MemoryOptions, device: torch.device) -> None:
    """Sets the attention of the modules (U-Net, VAE): chunked, else xformers, else PyTorch's own.

    `--xformers` is ignored with a warning where there is nothing that it works with. Raises `UserError` where the
    installed one fails.
    """
    if options.mem_eff_attn:
        for module in modules:
            _set_processor(module, ChunkedAttention())
    elif options.xformers and xformers_works(device):
        for module in modules:
            _enable_xformers(module)


def _enable_xformers(module: Any) -> None:
    """Diffusers tries it once on the GPU: it raises what xformers does where it has no kernel for this GPU."""
    try:
        module.enable_xformers_memory_efficient_attention()
    except (RuntimeError, ValueError, ImportError, OSError) as error:
        raise UserError(
            f"--xformers: the installed xformers does not work with this GPU and PyTorch: {first_line(error)}",
            hint="give --sdpa instead (PyTorch's own attention), or install the xformers made for this PyTorch",
        ) from None


def _set_processor(module: Any, processor: ChunkedAttention) -> None:
    module.set_attn_processor(processor)


def xformers_works(device: torch.device) -> bool:
    """Whether xformers is installed and has kernels for the device; logs a warning where not."""
    if importlib.util.find_spec("xformers") is None:
        return False  # warned of already, when the options were read
    if device.type != "cuda":
        logger.warning("--xformers needs a GPU: PyTorch's own attention is used on %s", device.type)
        return False
    return True


def compile_blocks(unet: Any, backend: str) -> None:
    """Compiles the transformer blocks of a Diffusers U-Net, each at its first call, with what is attached until then.

    Regional compilation: blocks of one width share what is compiled, and further sizes of images take one compiled
    for any size, where the U-Net as a whole would be compiled again for each.
    https://docs.pytorch.org/tutorials/recipes/regional_compilation.html
    """
    # of one function; beyond it PyTorch compiles nothing more: widths, with and without gradients, batches of one
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    unet.compile_repeated_blocks(backend=backend)


STORED = torch.float8_e4m3fn


@torch.no_grad()
def store_in_float8(network: nn.Module) -> None:
    """Stores the weights of all linear and convolutional layers in fp8 (e4m3); they compute in their input's dtype.

    Norms and biases keep their precision. Adapters must be attached afterwards.
    """
    layer: Any
    for layer in network.modules():
        kind = type(layer)
        if kind in _FORWARDS:
            largest = torch.finfo(STORED).max
            layer.weight.data = layer.weight.data.clamp(-largest, largest).to(STORED)
            layer.forward = partial(_FORWARDS[kind], layer)


def _linear(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return functional.linear(x, layer.weight.to(x.dtype), layer.bias)


def _convolution(layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    return layer._conv_forward(x, layer.weight.to(x.dtype), layer.bias)


_FORWARDS: dict[type[nn.Module], Callable[..., torch.Tensor]] = {nn.Linear: _linear, nn.Conv2d: _convolution}
