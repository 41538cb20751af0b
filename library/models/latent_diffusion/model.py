"""What the Stable Diffusion families share once they are loaded: parts made ready, latents, gradient checkpointing."""

from __future__ import annotations

import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from library.cli.errors import UserError
from library.diffusion.discrete_diffusion import DiscreteDiffusion
from library.diffusion.noise_schedule import rescale_to_zero_terminal_snr
from library.models.compute import compile_blocks, set_attention, store_in_float8
from library.models.device_copies import to_device
from library.models.family import AdapterRoots, LoadSettings
from library.models.inpainting import Inpainting, widen_first_layer
from library.models.latent_diffusion.betas import make_alphas_cumprod
from library.models.latent_diffusion.layer_names import unet_for_adapters
from library.models.latent_diffusion.vae_codec import VaeCodec
from library.models.layouts.diffusers_folder import DiffusersFolder
from library.models.layouts.formats import SavedModel, format_problem, save_model
from library.models.layouts.model_layout import V_PREDICTION, takes_masks
from library.models.layouts.parts import ModelParts
from library.models.options import ModelOptions, PromptOptions
from library.models.reading.detection import DetectedModel
from library.models.reading.loading import LoadedModel, load_model
from library.models.text.text_encoder import TextEncoder
from library.models.text.tokenizer import PromptTokenizer, PromptTokens
from library.models.weights.checkpoint_files import WeightFile
from library.models.weights.module_weights import Fingerprints

logger = logging.getLogger(__name__)

FamilyT = TypeVar("FamilyT", bound="LatentDiffusionModel")


class LatentDiffusionModel(ABC):
    """A U-Net, its text encoders by the names of their folders, and a VAE; the base of families with these parts.

    A family adds `conditioning`, `caches`, `_encode_prompts` and `predict`, and what
    textual inversion needs: see `ModelFamily`.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        detected: DetectedModel,
        predicts: str,
        prompt_options: PromptOptions,
        settings: LoadSettings,
    ):
        """`predicts`: the prediction type, "epsilon" or "v_prediction"."""
        parts = loaded.parts
        if settings.widens_for_inpainting and not takes_masks(parts.unet_channels):
            widen_first_layer(parts.unet, parts.vae.config.latent_channels)
        self.unet: Any = parts.unet
        self.takes_masks = takes_masks(parts.unet_channels)
        self.vae = parts.vae
        self.tokenizers = dict(loaded.tokenizers)
        self.process = DiscreteDiffusion(make_alphas_cumprod(detected.scheduler, detected.source), predicts)
        self._layout = detected.layout
        self._unet_for_adapters = unet_for_adapters(parts.unet, detected.layout)
        self.version = detected.layout.versions[predicts]
        self.architecture = detected.layout.architectures[predicts]
        self.pipeline = detected.layout.pipeline_for(parts.unet_channels)
        self.usual_size = detected.layout.usual_sizes[predicts]
        self._encoders = dict(parts.text_encoders)
        self._unused_tensors = parts.unused_tensors
        self._prompt_options = prompt_options
        self._scheduler = {**detected.scheduler, "prediction_type": predicts}
        self._codec = VaeCodec(parts.vae)
        self.latent_channels, self.vae_scale = self._codec.latent_channels, self._codec.vae_scale
        self._text_fingerprints = Fingerprints()
        self._unet_dtype = torch.float32
        self._snapshots: dict[str, Any] = {}
        self._is_text_offloaded = False
        self._blank_latents: dict[tuple[int, int], torch.Tensor] = {}  # of a grey image, by its size
        self._make_ready(settings)

    @classmethod
    def load(
        cls: type[FamilyT],
        source: DiffusersFolder | WeightFile,
        detected: DetectedModel,
        options: ModelOptions,
        prompt_options: PromptOptions,
        settings: LoadSettings,
    ) -> FamilyT:
        """Loads a model, frozen and in eval mode, as `settings` say; reads nothing but local files.

        Raises `UserError` for files that are incomplete or do not fit together.
        """
        with torch.device(settings.device if settings.memory.lowram else "cpu"):
            loaded = load_model(source, detected.layout, options, settings.read_dtypes)
        predicts = detected.predicts(options)
        family = cls(loaded, detected, predicts, prompt_options, settings)
        logger.info(
            "loaded %s: %s%s, predicts %s%s",
            Path(detected.source).name,
            detected.layout.title,
            f" ({_kind_of_inpainting(detected)})" if family.takes_masks else "",
            "v" if predicts == V_PREDICTION else "noise",
            ", as the model says" if predicts == V_PREDICTION and not options.v_parameterization else "",
        )
        return family

    def _make_ready(self, settings: LoadSettings) -> None:
        """The steps between loading and training. Each relies on the one before it."""
        if settings.zero_terminal_snr:
            rescaled = rescale_to_zero_terminal_snr(self.process.schedule.alphas_cumprod)
            self.process = DiscreteDiffusion(rescaled, self.process.prediction_type)
            self._scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        modules: dict[str, Any] = {"unet": self.unet, **self._encoders, "vae": self.vae}
        for name, module in modules.items():
            part = "text_encoder" if name in self._encoders else name
            if part in settings.kept_exact:
                self._snapshots[name] = nn.Module.to(copy.deepcopy(module), "cpu")
            # Diffusers' own `to` warns of modules to keep in float32 without need
            nn.Module.to(module, settings.device, settings.dtypes.get(part, torch.float32))
        for name in settings.channels_last:
            nn.Module.to(modules[name], memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._unet_dtype = settings.dtypes.get("unet", torch.float32)
        set_attention((self.unet, self.vae), settings.memory, torch.device(settings.device))
        if settings.memory.vae_slicing:
            self.vae.enable_slicing()
        if settings.memory.keeps_fp8_unet:
            store_in_float8(self.unet)
        if settings.gradient_checkpointing:
            self._checkpoint_gradients()
        if settings.memory.compiles:
            compile_blocks(self.unet, settings.memory.dynamo_backend)

    def _checkpoint_gradients(self) -> None:
        """Recomputes activations of U-Net and text encoders in the backward pass.

        Puts all in train mode, which text encoders (and U-Nets of older versions of Diffusers) need for it; the
        models have no dropout, so nothing else changes.
        """
        self.unet.enable_gradient_checkpointing()
        self.unet.train()
        for encoder in self.text_encoders:
            encoder.gradient_checkpointing_enable()
            encoder.train()

    @property
    def text_encoders(self) -> tuple[TextEncoder, ...]:
        return tuple(self._encoders.values())

    def adapter_roots(self) -> AdapterRoots:
        """The U-Net, its layers named as adapter files of the family name them, and the text encoders."""
        return AdapterRoots(self._unet_for_adapters, self.text_encoders)

    def offload_text_encoders(self) -> None:
        """Moves the text encoders to the CPU; encoding brings them back for as long as it takes."""
        self._is_text_offloaded = True
        for encoder in self.text_encoders:
            nn.Module.to(encoder, "cpu")

    def encode_prompts(self, prompts: Sequence[str], *, weighted: bool | None = None) -> Any:
        """What the denoiser takes of prompts, on its device: see `ModelFamily.encode_prompts`."""
        if not self._is_text_offloaded:
            return self._encode_prompts(prompts, weighted)
        device = self.unet.device
        try:
            for encoder in self.text_encoders:
                nn.Module.to(encoder, device)
            return self._encode_prompts(prompts, weighted)
        finally:
            self.offload_text_encoders()

    @abstractmethod
    def _encode_prompts(self, prompts: Sequence[str], weighted: bool | None) -> Any:
        """`encode_prompts`, with the text encoders on the denoiser's device."""

    def unet_blocks(self) -> Sequence[list[nn.Parameter]]:
        """None: the blocks of `--block_lr` are those of Stable Diffusion XL."""
        return ()

    def offload_vae(self) -> None:
        """Moves the VAE to the CPU; decoding brings it back for as long as it takes."""
        nn.Module.to(self.vae, "cpu")

    def encode_images(self, pixels: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        """(B, 3, H, W) in [-1, 1] -> unscaled float32 latents (B, 4, H/8, W/8), image i sampled with seeds[i]."""
        return self._codec.encode_images(pixels, seeds)

    def scale_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents as the VAE gives them -> latents as the U-Net takes them, of about unit variance."""
        return self._codec.scale_latents(latents)

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents (B, 4, h, w) -> pixels (B, 3, 8h, 8w), roughly in [-1, 1], float32."""
        return self._codec.decode_latents(latents)

    def _unet_input(self, latents: torch.Tensor, inpainting: Inpainting | None) -> torch.Tensor:
        """Noisy latents in the U-Net's precision, joined by what an inpainting model takes beside them."""
        if self.takes_masks:
            latents = (inpainting or self._all_masked(latents)).joined(latents)
        return latents.to(self._unet_dtype)

    def _all_masked(self, latents: torch.Tensor) -> Inpainting:
        """For images of which everything is to be drawn."""
        height, width = latents.shape[2:]
        if (height, width) not in self._blank_latents:
            grey = torch.zeros(1, 3, height * self.vae_scale, width * self.vae_scale)
            self._blank_latents[height, width] = self.scale_latents(self.encode_images(grey, [0]))
        blank = self._blank_latents[height, width]
        return Inpainting(latents.new_ones(len(latents), 1, height, width), blank.expand(len(latents), -1, -1, -1))

    def vae_fingerprint(self) -> str:
        """A digest of the VAE's weights in their present precision, 16 hexadecimal digits."""
        return self._codec.vae_fingerprint()

    def text_fingerprint(self) -> str:
        """The same for the text encoders, followed by the prompt options and, if it is its own, the tokenizer's."""
        digests = [self._text_fingerprints.of(encoder, encoder.dtype) for encoder in self.text_encoders]
        tokenizers = [tokenizer.fingerprint for tokenizer in self.tokenizers.values()]
        return " ".join(str(part) for part in (*digests, self._prompt_options, *tokenizers) if part != "")

    def save_problem(self, format: str) -> UserError | None:
        """Why the whole model cannot be saved in a format; None where it can."""
        return format_problem(format, ModelParts(self.unet, self.vae, self._encoders, self._unused_tensors))

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
        """Writes the whole model in one of `layouts.formats.FORMATS`. Raises `OSError` when it cannot be written.

        Frozen parts are written as they were loaded, where computing with them has rounded them. `epoch` and
        `global_step` are stored in .ckpt files.
        """
        stored = {name: self._snapshots.get(name, encoder) for name, encoder in self._encoders.items()}
        model = SavedModel(
            ModelParts(self.unet, self._snapshots.get("vae", self.vae), stored, self._unused_tensors),
            self._layout,
            self.tokenizers,
            self._scheduler,
            dtype,
            metadata,
            epoch=epoch,
            global_step=global_step,
        )
        save_model(Path(path), format, model)


def _kind_of_inpainting(detected: DetectedModel) -> str:
    if detected.is_inpainting or detected.unet_channels is None:
        return "inpainting: its U-Net takes a mask and the masked image"
    return "widened to an inpainting model, by zero weights"


def tokens_of(
    tokenizer: PromptTokenizer, prompts: Sequence[str], options: PromptOptions, weighted: bool | None
) -> PromptTokens:
    """Tokens of captions (`weighted` None: the options decide), or of prompts, which are padded and never truncated."""
    if weighted is None:
        return tokenizer.encode(prompts, options, options.weighted_captions)
    return tokenizer.encode(prompts, replace(options, no_token_padding=False), weighted, truncates=False)


def joined_chunks(chunks: Sequence[torch.Tensor], weights: torch.Tensor | None) -> torch.Tensor:
    """Hidden states of n chunks, each (B, 77, D) -> (B, 2 + 75 n, D), times the weights (B, n, 77) of their tokens.

    Of the chunks' start and end tokens, the first start and the last end are kept.
    """
    if weights is not None:
        factors = to_device(weights, chunks[0].device, chunks[0].dtype).unsqueeze(-1)
        chunks = [states * factors[:, index] for index, states in enumerate(chunks)]
    inner = [states[:, 1:-1] for states in chunks]
    return torch.cat([chunks[0][:, :1], *inner, chunks[-1][:, -1:]], dim=1)
