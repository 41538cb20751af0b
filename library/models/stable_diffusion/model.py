"""The model family Stable Diffusion 1.x and 2.x: loading, prompts, latents, prediction, saving."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from library.cli.errors import UserError
from library.data.caches.cache_names import SD_CACHES
from library.data.records import Framing
from library.diffusion.discrete_diffusion import DiscreteDiffusion
from library.models.conditioning import TextStates
from library.models.device_copies import to_device
from library.models.family import LoadSettings
from library.models.latent_diffusion import LatentDiffusionModel, joined_chunks, tokens_of
from library.models.layouts import ldm_layout
from library.models.layouts.diffusers_folder import DiffusersFolder, load_folder
from library.models.layouts.formats import SavedModel, save_model
from library.models.layouts.parts import ModelParts
from library.models.layouts.vae_loading import load_vae
from library.models.options import ModelOptions, PromptOptions
from library.models.stable_diffusion.betas import make_alphas_cumprod
from library.models.stable_diffusion.detection import V_PREDICTION, DetectedModel, channels_error
from library.models.stable_diffusion.layer_conditioning import LayerConditioning, cross_attention_layers
from library.models.text.token_embedding import TokenEmbedding
from library.models.text.tokenizer import PromptTokenizer, PromptTokens, load_tokenizer
from library.models.weights.checkpoint_files import WeightFile

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Version:
    """Names of a version (1.x or 2.x) by prediction type, and how it pads prompts."""

    names: Mapping[str, str]
    architectures: Mapping[str, str]
    pads_with_end: bool


_VERSIONS = {
    False: _Version(
        names={"epsilon": "sd_v1", V_PREDICTION: "sd_v1_v"},
        architectures={"epsilon": "stable-diffusion-v1", V_PREDICTION: "stable-diffusion-v1"},
        pads_with_end=True,
    ),
    True: _Version(
        names={"epsilon": "sd_v2", V_PREDICTION: "sd_v2_v"},
        architectures={"epsilon": "stable-diffusion-v2-512", V_PREDICTION: "stable-diffusion-v2-768-v"},
        pads_with_end=False,
    ),
}


class StableDiffusion(LatentDiffusionModel):
    """A loaded Stable Diffusion 1.x or 2.x model; implements `ModelFamily`."""

    conditioning = TextStates
    caches = SD_CACHES

    def __init__(
        self,
        parts: ModelParts,
        tokenizer: PromptTokenizer,
        detected: DetectedModel,
        prediction_type: str,
        prompt_options: PromptOptions,
        settings: LoadSettings,
    ):
        version = _VERSIONS[detected.is_v2]
        self.version = version.names[prediction_type]
        self.architecture = version.architectures[prediction_type]
        self.is_v2 = detected.is_v2
        self.tokenizer = tokenizer
        self._unused_tensors = parts.unused_tensors
        self._embedding: TokenEmbedding | None = None
        self._layer_conditioning: LayerConditioning | None = None  # where layers have separate hidden states
        super().__init__(
            parts.unet,
            parts.vae,
            {"text_encoder": parts.text_encoder},
            DiscreteDiffusion(make_alphas_cumprod(detected.scheduler, detected.source), prediction_type),
            detected.scheduler,
            prompt_options,
            settings,
        )

    def encode_prompts(self, prompts: Sequence[str], *, weighted: bool | None = None) -> TextStates:
        """Prompts -> hidden states (B, 2 + 75 n, D); captions truncated at `max_token_length` = 75 n. Gradients flow.

        With an embedding that has vectors for each layer: (layers, B, 2 + 75 n, D). The n chunks are encoded one by
        one; of their start and end tokens, the first start and the last end are kept.
        """
        tokens = tokens_of(self.tokenizer, prompts, self._prompt_options, weighted)
        if self._embedding is None or self._embedding.num_layers == 1:
            return TextStates(self._encode(tokens))
        (encoder,) = self.text_encoders
        ids = self._embedding.ids_of_layers(tokens.ids, encoder.token_embedding.num_embeddings)
        weights = None if tokens.weights is None else tokens.weights.expand(ids.shape).flatten(0, 1)
        states = self._encode(PromptTokens(ids.flatten(0, 1), weights))
        return TextStates(states.unflatten(0, ids.shape[:2]))

    def _encode(self, tokens: PromptTokens) -> torch.Tensor:
        (encoder,) = self.text_encoders
        device = next(encoder.parameters()).device
        ids, clip_skip = to_device(tokens.ids, device), self._prompt_options.clip_skip or 1
        chunks = [encoder(ids[:, index], clip_skip) for index in range(ids.shape[1])]
        return joined_chunks(chunks, tokens.weights)

    def cross_attention_layers(self) -> tuple[str, ...]:
        """Names of the U-Net's cross-attention layers, in the order in which they are computed; usually 16."""
        return tuple(cross_attention_layers(self.unet))

    def layers_after_clip_skip(self) -> tuple[nn.Module, ...]:
        """Layers of the text encoder after the one that `--clip_skip` reads."""
        (encoder,) = self.text_encoders
        layers = encoder.text_model.encoder.layers
        return tuple(layers[len(layers) + 1 - (self._prompt_options.clip_skip or 1) :])

    def token_vectors(self, text: str | None = None) -> torch.Tensor:
        """Token embeddings, (tokens, D) float32: of a text's tokens, or of all the vocabulary."""
        (encoder,) = self.text_encoders
        table = encoder.token_embedding.weight.detach()
        return (table if text is None else table[self.tokenizer.token_ids(text)]).float()

    def add_token(self, embedding: TokenEmbedding) -> None:
        """Adds the token of an embedding to the vocabulary. Raises `UserError` if it is in it already."""
        (encoder,) = self.text_encoders
        text = embedding.text
        if self.tokenizer.knows(text):
            raise UserError(f"{text} is in the model's vocabulary already", "choose a token that it does not know")
        self.tokenizer = self.tokenizer.with_token(text, embedding.attach(encoder.token_embedding))
        self._embedding = embedding
        if embedding.num_layers > 1 and self._layer_conditioning is None:
            self._layer_conditioning = LayerConditioning(self.unet)

    def count_tokens(self, prompts: Sequence[str]) -> list[int]:
        """The number of tokens of each prompt, without start and end and before truncation."""
        weighted = self._prompt_options.weighted_captions
        return self.tokenizer.counts(prompts, weighted)

    def predict(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        conditioning: TextStates,
        framing: Sequence[Framing] | None = None,
    ) -> torch.Tensor:
        """The U-Net's output (B, 4, h, w) for noisy scaled latents (B, 4, h, w) and timesteps (B,); no `framing`.

        Inputs are cast to the U-Net's precision, which that of the text encoder need not be.
        """
        hidden_states = conditioning.hidden_states.to(self._unet_dtype)
        if self._layer_conditioning is not None:
            hidden_states = self._layer_conditioning.pack(hidden_states)
        return self.unet(latents.to(self._unet_dtype), timesteps, encoder_hidden_states=hidden_states).sample

    def _tokenizer_fingerprint(self) -> str:
        return self.tokenizer.fingerprint

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

        `epoch` and `global_step` are stored in .ckpt files.
        """
        (encoder,) = self.text_encoders
        vae, stored_encoder = self._stored("vae", self.vae), self._stored("text_encoder", encoder)
        parts = ModelParts(self.unet, vae, stored_encoder, self._unused_tensors)
        model = SavedModel(
            parts, self.tokenizer, self.is_v2, self._scheduler, dtype, metadata, epoch=epoch, global_step=global_step
        )
        save_model(Path(path), format, model)


def load(
    source: DiffusersFolder | WeightFile,
    detected: DetectedModel,
    options: ModelOptions,
    prompt_options: PromptOptions,
    settings: LoadSettings,
) -> StableDiffusion:
    """Loads a model, frozen and in eval mode, as `settings` say; reads nothing but local files.

    Raises `UserError` for files that are incomplete or do not fit together.
    """
    with torch.device(settings.device if settings.memory.lowram else "cpu"):
        is_mapped = not options.disable_mmap_load_safetensors
        vae = None if options.vae is None else load_vae(options.vae, is_mapped=is_mapped)
        parts = ldm_layout.load_single_file(source, vae) if isinstance(source, WeightFile) else load_folder(source, vae)
    _check_fit(parts, detected.source)
    has_tokenizer = not isinstance(source, WeightFile) and source.has("tokenizer")
    tokenizer_folder = source.path / "tokenizer" if has_tokenizer else None
    tokenizer = load_tokenizer(tokenizer_folder, pads_with_end=_VERSIONS[detected.is_v2].pads_with_end)
    num_tokens, vocab_size = len(tokenizer.tokenizer), parts.text_encoder.config.vocab_size
    if num_tokens > vocab_size:
        message = f"{detected.source}: the tokenizer has {num_tokens} tokens, the text encoder {vocab_size}"
        raise UserError(message, "tokenizer and text_encoder are of different models")
    prediction_type = detected.predicts(options)
    family = StableDiffusion(parts, tokenizer, detected, prediction_type, prompt_options, settings)
    logger.info(
        "loaded %s: Stable Diffusion %s, predicts %s%s",
        Path(detected.source).name,
        "2.x" if detected.is_v2 else "1.x",
        "v" if prediction_type == V_PREDICTION else "noise",
        ", as the model says" if prediction_type == V_PREDICTION and not options.v_parameterization else "",
    )
    return family


def _check_fit(parts: ModelParts, source: str) -> None:
    """Raises `UserError` for parts that do not fit together, and for variants with additional inputs."""
    latents, unet = parts.vae.config.latent_channels, parts.unet.config
    if unet.in_channels != latents or unet.out_channels != latents:
        raise channels_error(source, (unet.in_channels, unet.out_channels), latents)
    if unet.class_embed_type is not None or unet.num_class_embeds is not None:
        raise UserError(f"{source}: the U-Net takes class labels or noise levels", "give a text-to-image model")
    width = parts.text_encoder.config.hidden_size
    if unet.cross_attention_dim != width:
        raise UserError(
            f"{source}: the U-Net expects text of width {unet.cross_attention_dim}, the text encoder gives {width}",
            "unet and text_encoder are of different models",
        )
