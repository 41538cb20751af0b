"""The interface of a model family: everything that training needs of a loaded model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from library.cli.errors import UserError
from library.models.options import MemoryOptions

if TYPE_CHECKING:
    import torch
    from torch import nn

    from library.data.caches.cache_names import CacheFormat
    from library.data.records import Framing
    from library.diffusion.process import NoiseProcess
    from library.models.conditioning import Conditioning
    from library.models.inpainting import Inpainting
    from library.models.text.token_embedding import TokenEmbedding


@dataclass(frozen=True)
class AdapterBlocks:
    """The blocks whose layers adapter networks wrap, by the names of their classes.

    `linear`: of the denoiser, whose linear layers and 1x1 convolutions are wrapped. `convolutional`: of the denoiser,
    wrapped where other convolutions are too. `text_encoder`: of text encoders, whose linear layers are wrapped.
    """

    linear: tuple[str, ...]
    convolutional: tuple[str, ...] = ()
    text_encoder: tuple[str, ...] = ()


@dataclass(frozen=True)
class AdapterRoots:
    """The modules whose layers an adapter network may wrap. `blocks`: None for a U-Net of Diffusers and CLIP."""

    unet: nn.Module
    text_encoders: tuple[nn.Module, ...]
    blocks: AdapterBlocks | None = None


@dataclass(frozen=True)
class LoadSettings:
    """How a model is loaded: it comes ready to be trained, so that no order of steps is left to the caller.

    `dtypes`: of the parts "unet", "text_encoder" and "vae"; float32 where not given. `kept_exact`: frozen parts that
    their dtype rounds and `save` writes as they were loaded. `channels_last`: parts whose convolutions are laid out so.
    `zero_terminal_snr`: rescales the noise schedule, for
    training, sampling and the saved scheduler configuration. `widens_for_inpainting`: makes an inpainting model of one
    that is none.
    """

    device: torch.device | str = "cpu"
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    kept_exact: frozenset[str] = frozenset()
    channels_last: frozenset[str] = frozenset()
    memory: MemoryOptions = MemoryOptions()
    gradient_checkpointing: bool = False
    zero_terminal_snr: bool = False
    widens_for_inpainting: bool = False

    @property
    def read_dtypes(self) -> dict[str, torch.dtype]:
        """The data types in which parts are read: those that are kept exact are rounded only afterwards."""
        return {name: dtype for name, dtype in self.dtypes.items() if name not in self.kept_exact}


class ImageEncoder(Protocol):
    """What encodes images to latents: a model, or its VAE alone."""

    latent_channels: int
    vae_scale: int  # pixels per latent, along one side

    def encode_images(self, pixels: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        """(B, 3, H, W) in [-1, 1] -> unscaled float32 latents (B, C, h, w), image i sampled with seeds[i]."""

    def vae_fingerprint(self) -> str:
        """A digest of the VAE's weights and precision, for caches of latents."""


class ModelFamily(ImageEncoder, Protocol):
    """A kind of diffusion model, loaded as `LoadSettings` say. The loop, samples and methods know models only so."""

    version: str  # as written to metadata: "sd_v1", "sd_v2", "sd_v2_v", ...
    pipeline: str  # the class of Diffusers that runs it
    usual_size: int  # pixels of a side that it was made for
    architecture: str  # of SAI ModelSpec: "stable-diffusion-v1", "stable-diffusion-v2-768-v", ...
    takes_masks: bool  # an inpainting model: it takes a mask and the masked image
    process: NoiseProcess
    conditioning: type[Conditioning]  # what `encode_prompts` gives and `predict` takes
    caches: CacheFormat
    unet: nn.Module
    vae: nn.Module

    @property
    def text_encoders(self) -> tuple[nn.Module, ...]: ...

    def adapter_roots(self) -> AdapterRoots:
        """What networks are given: modules whose `named_modules` says the names that layers have in adapter files."""

    def offload_vae(self) -> None:
        """Moves the VAE to the CPU; decoding brings it back for as long as it takes."""

    def offload_text_encoders(self) -> None:
        """Moves the text encoders to the CPU; encoding brings them back for as long as it takes."""

    def encode_prompts(self, prompts: Sequence[str], *, weighted: bool | None = None) -> Conditioning:
        """Tokenizes and encodes; gradients flow unless the caller forbids them.

        `weighted`: whether brackets in the prompts are prompt weights; None for captions, where the options decide.
        Prompts that are not captions are always padded, and never truncated, as in image programs.
        """

    def count_tokens(self, prompts: Sequence[str]) -> list[int]:
        """The number of tokens of each prompt, without start and end and before truncation."""

    def cross_attention_layers(self) -> tuple[str, ...]:
        """Names of the denoiser's cross-attention layers, in the order in which they are computed."""

    def unet_blocks(self) -> Sequence[list[nn.Parameter]]:
        """The denoiser's parameters by the blocks of `--block_lr`; none where the family has no such numbers."""

    def layers_after_clip_skip(self) -> tuple[nn.Module, ...]:
        """Layers of the text encoders that `--clip_skip` skips: no gradient reaches them."""

    def token_vectors(self, text: str | None = None) -> Mapping[str, torch.Tensor]:
        """Token embeddings, (tokens, width) float32: of a text's tokens, or of all the vocabulary.

        One for each token table, under the name that the table's vectors have in embedding files.
        """

    def add_token(self, text: str, embeddings: Mapping[str, TokenEmbedding]) -> None:
        """Adds a token with its vectors for each table. Raises `UserError` if it is in the vocabulary already."""

    def scale_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents as the VAE gives them -> latents as the denoiser takes them."""

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents -> pixels (B, 3, H, W) in [-1, 1], float32."""

    def predict(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        conditioning: Conditioning,
        framing: Sequence[Framing] | None = None,
        inpainting: Inpainting | None = None,
    ) -> torch.Tensor:
        """The denoiser's output for noisy scaled latents (B, C, h, w) and timesteps (B,).

        `framing`: of each image, for models that are conditioned on it; None: they are whole, of their own size.
        `inpainting`: for models with `takes_masks`; None: all of each image is to be drawn.
        """

    def text_fingerprint(self) -> str:
        """A digest of the text encoder's weights, precision and prompt options, for caches of its outputs."""

    def save_problem(self, format: str) -> UserError | None:
        """Why the whole model cannot be saved in a format of `layouts.formats.FORMATS`; None where it can."""

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
        """Writes the whole model in a format of `layouts.formats.FORMATS`, atomically; the model is not changed.

        `metadata` is used by formats that can hold it. Raises `OSError` when it cannot be written.
        """
