"""The model family Stable Diffusion 1.x and 2.x: loading, prompts, latents, prediction, saving."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from library.cli.errors import UserError
from library.data.caches.cache_names import SD_CACHES
from library.data.records import Framing
from library.models.conditioning import TextStates
from library.models.device_copies import to_device
from library.models.family import LoadSettings
from library.models.inpainting import Inpainting
from library.models.latent_diffusion.model import LatentDiffusionModel, joined_chunks, tokens_of
from library.models.options import PromptOptions
from library.models.reading.detection import DetectedModel
from library.models.reading.loading import LoadedModel
from library.models.stable_diffusion.layer_conditioning import LayerConditioning, cross_attention_layers
from library.models.stable_diffusion.layout import SD_2
from library.models.text.token_embedding import TokenEmbedding
from library.models.text.tokenizer import PromptTokenizer, PromptTokens

logger = logging.getLogger(__name__)

TABLE = "emb_params"  # the token table, as embedding files name it


class StableDiffusion(LatentDiffusionModel):
    """A loaded Stable Diffusion 1.x or 2.x model; implements `ModelFamily`."""

    conditioning = TextStates
    caches = SD_CACHES

    def __init__(
        self,
        loaded: LoadedModel,
        detected: DetectedModel,
        prediction_type: str,
        prompt_options: PromptOptions,
        settings: LoadSettings,
    ):
        self.is_v2 = detected.layout is SD_2
        self._embedding: TokenEmbedding | None = None
        self._layer_conditioning: LayerConditioning | None = None  # where layers have separate hidden states
        super().__init__(loaded, detected, prediction_type, prompt_options, settings)

    @property
    def tokenizer(self) -> PromptTokenizer:
        return self.tokenizers["tokenizer"]

    def _encode_prompts(self, prompts: Sequence[str], weighted: bool | None) -> TextStates:
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

    def token_vectors(self, text: str | None = None) -> Mapping[str, torch.Tensor]:
        """Token embeddings, (tokens, D) float32: of a text's tokens, or of all the vocabulary."""
        (encoder,) = self.text_encoders
        table = encoder.token_embedding.weight.detach()
        return {TABLE: (table if text is None else table[self.tokenizer.token_ids(text)]).float()}

    def add_token(self, text: str, embeddings: Mapping[str, TokenEmbedding]) -> None:
        """Adds a token to the vocabulary. Raises `UserError` if it is in it already."""
        (encoder,) = self.text_encoders
        embedding = embeddings[TABLE]
        if self.tokenizer.knows(text):
            raise UserError(f"{text} is in the model's vocabulary already", "choose a token that it does not know")
        self.tokenizers["tokenizer"] = self.tokenizer.with_token(text, embedding.attach(encoder.token_embedding))
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
        inpainting: Inpainting | None = None,
    ) -> torch.Tensor:
        """The U-Net's output (B, 4, h, w) for noisy scaled latents (B, 4, h, w) and timesteps (B,); no `framing`.

        Inputs are cast to the U-Net's precision, which that of the text encoder need not be.
        """
        hidden_states = conditioning.hidden_states.to(self._unet_dtype)
        if self._layer_conditioning is not None:
            hidden_states = self._layer_conditioning.pack(hidden_states)
        noisy = self._unet_input(latents, inpainting)
        return self.unet(noisy, timesteps, encoder_hidden_states=hidden_states).sample


load = StableDiffusion.load
