"""The first seam: what is being trained on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn

    from library.models.options import MemoryOptions
    from library.models.text.token_embedding import TokenEmbedding


@dataclass
class Conditioning:
    """What prompts say to the denoiser: hidden states of the text encoder.

    (B, tokens, width); or (layers, B, tokens, width) where each cross-attention layer is told something of its own, in
    the order of `ModelFamily.cross_attention_layers`.
    """

    hidden_states: torch.Tensor


@dataclass(frozen=True)
class AdapterRoots:
    """The modules whose layers an adapter network may wrap."""

    unet: nn.Module
    text_encoders: tuple[nn.Module, ...]


class ModelFamily(Protocol):
    """A kind of diffusion model, loaded. The loop, samples and methods know models only through this."""

    version: str  # as written to metadata: "sd_v1", "sd_v2", "sd_v2_v", ...
    architecture: str  # of SAI ModelSpec: "stable-diffusion-v1", "stable-diffusion-v2-768-v", ...
    prediction_type: str  # "epsilon" or "v_prediction"
    latent_channels: int
    vae_scale: int  # pixels per latent, along one side
    unet: nn.Module
    text_encoders: tuple[nn.Module, ...]
    vae: nn.Module

    def alphas_cumprod(self) -> torch.Tensor:
        """The noise schedule, (num_train_timesteps,) float32."""

    def rescale_to_zero_terminal_snr(self) -> None:
        """From now on the noise schedule ends in noise alone: when training, drawing samples and in what is saved."""

    def adapter_roots(self) -> AdapterRoots: ...

    def snapshot_frozen(self, parts: Collection[str]) -> None:
        """Keeps copies of parts that `place` is going to round ("text_encoder", "vae"), which `save` then writes."""

    def to_device(
        self, device: torch.device, *, unet: torch.dtype, text_encoder: torch.dtype, vae: torch.dtype
    ) -> None:
        """Moves all parts to a device, each in its data type."""

    def apply_memory_options(self, options: MemoryOptions, device: torch.device) -> None:
        """Attention, the VAE and the storage of weights as the options say; after `place` and before adapters."""

    def compile(self, backend: str) -> None:
        """Compiles the denoiser, with whatever is attached to it."""

    def offload_vae(self) -> None:
        """Frees the device of the VAE; decoding works nevertheless."""

    def enable_gradient_checkpointing(self) -> None: ...

    def encode_prompts(self, prompts: Sequence[str], *, weighted: bool | None = None) -> Conditioning:
        """Tokenizes and encodes; gradients flow unless the caller forbids them.

        `weighted`: whether brackets in the prompts weigh their parts; None for captions, which are as the options
        say. Other prompts are always padded, as programs that draw images do it.
        """

    def count_tokens(self, prompts: Sequence[str]) -> list[int]:
        """How many tokens each prompt has, start and end not counted, however many of them are read."""

    def cross_attention_layers(self) -> tuple[str, ...]:
        """Names of the denoiser's layers that see the text, in the order in which they are computed."""

    def layers_after_clip_skip(self) -> tuple[nn.Module, ...]:
        """Layers of the text encoders that nothing is read from (`--clip_skip`): no gradient reaches them."""

    def token_vectors(self, text: str | None = None) -> torch.Tensor:
        """Rows of the text encoder's table, (tokens, width) float32: of a text's tokens, or of all the vocabulary."""

    def add_token(self, word: TokenEmbedding) -> None:
        """From now on prompts are read with this word in them. Raises `UserError` if it is in the vocabulary."""

    def encode_images(self, pixels: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        """(B, 3, H, W) in [-1, 1] -> unscaled float32 latents (B, 4, H/8, W/8), image i sampled with seeds[i]."""

    def scale_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents as the VAE gives them -> latents as the denoiser takes them."""

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents -> pixels (B, 3, H, W) in [-1, 1], float32."""

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """The denoiser's output for noisy scaled latents (B, 4, h, w) and timesteps (B,)."""

    def text_fingerprint(self) -> str:
        """Names the text encoder's weights, precision and prompt options, for caches of what it says."""

    def vae_fingerprint(self) -> str:
        """Names the VAE's weights and precision, so that a cache can tell whether it was made with them."""

    def save(
        self,
        path: Path,
        *,
        format: str,
        dtype: torch.dtype,
        metadata: Mapping[str, str],
        epoch: int = 0,
        global_step: int = 0,
    ) -> None:
        """Writes the whole model in a format of `model_saving.FORMATS`, whole or not at all; the model stays as it is.

        `metadata` is for formats that have a place for it. Raises `UserError` when it cannot be written.
        """
