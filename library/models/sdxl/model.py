"""The model family Stable Diffusion XL: prompts through two text encoders, image sizes and crops, prediction.

"SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis" (Podell et al., 2307.01952).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from library.cli.errors import UserError
from library.data.caches.cache_names import CacheFormat
from library.data.records import Framing
from library.models.conditioning import Conditioning
from library.models.device_copies import to_device
from library.models.inpainting import Inpainting
from library.models.latent_diffusion.model import LatentDiffusionModel, joined_chunks, tokens_of
from library.models.layouts.ldm_keys import rename_key
from library.models.layouts.ldm_unet import module_names
from library.models.text.text_encoder import TextEncoder
from library.models.text.token_embedding import TokenEmbedding
from library.models.text.tokenizer import PromptTokenizer, PromptTokens

logger = logging.getLogger(__name__)

# the first block of each part of the U-Net, in the Stability layout
_FIRST_OF = {"time_embed": 0, "label_emb": 0, "input_blocks": 1, "middle_block": 10, "output_blocks": 13, "out": 22}
TABLES = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}  # token tables, as embedding files name them


@dataclass
class SDXLConditioning(Conditioning):
    """Hidden states of both text encoders, (B, tokens, width), and the pooled output (B, width) of the second.

    Cache files of other programs have the same names.
    """

    hidden_state1: torch.Tensor
    hidden_state2: torch.Tensor
    pool2: torch.Tensor


class StableDiffusionXL(LatentDiffusionModel):
    """A loaded Stable Diffusion XL model; implements `ModelFamily`."""

    conditioning = SDXLConditioning
    caches = CacheFormat("_te_outputs.npz", text_by_stem=True)

    def _encode_prompts(self, prompts: Sequence[str], weighted: bool | None) -> SDXLConditioning:
        """Prompts -> states (B, 2 + 75 n, width) of both encoders, of captions of up to 75 n tokens. Gradients flow.

        Taken from the last layer but one, without the final norm. The n chunks are encoded one by one; the pooled
        output is that of the first.
        """
        first, second = self.text_encoders
        one, two = self.tokenizers["tokenizer"], self.tokenizers["tokenizer_2"]
        states1, _ = self._encode(first, one, tokens_of(one, prompts, self._prompt_options, weighted))
        states2, pooled = self._encode(second, two, tokens_of(two, prompts, self._prompt_options, weighted))
        return SDXLConditioning(states1, states2, pooled)

    def _encode(
        self, encoder: TextEncoder, tokenizer: PromptTokenizer, tokens: PromptTokens
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states (B, 2 + 75 n, D), and the last layer's of the first chunk's end token, projected: (B, D')."""
        ids = to_device(tokens.ids, encoder.device)
        chunks, last = [], []
        for index in range(ids.shape[1]):
            penultimate, final = encoder.penultimate(ids[:, index])
            chunks.append(penultimate)
            last.append(final)
        ends = (ids[:, 0] == tokenizer.tokenizer.eos_token_id).int().argmax(dim=1)
        pooled = last[0][torch.arange(len(ends), device=ends.device), ends]
        if encoder.text_projection is not None:
            pooled = encoder.text_projection(pooled)
        return joined_chunks(chunks, tokens.weights), pooled

    def count_tokens(self, prompts: Sequence[str]) -> list[int]:
        """The number of tokens of each prompt, without start and end and before truncation."""
        return self.tokenizers["tokenizer"].counts(prompts, self._prompt_options.weighted_captions)

    def predict(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        conditioning: SDXLConditioning,
        framing: Sequence[Framing] | None = None,
        inpainting: Inpainting | None = None,
    ) -> torch.Tensor:
        """The U-Net's output (B, 4, h, w) for noisy scaled latents (B, 4, h, w) and timesteps (B,).

        Inputs are cast to the U-Net's precision, which that of the text encoders need not be.
        """
        dtype = self._unet_dtype
        states = torch.cat([conditioning.hidden_state1.to(dtype), conditioning.hidden_state2.to(dtype)], dim=-1)
        if framing is None:
            size = latents.shape[3] * self.vae_scale, latents.shape[2] * self.vae_scale
            framing = [Framing(size, (0, 0), size)] * len(latents)
        added = {
            "text_embeds": conditioning.pool2.to(dtype),
            "time_ids": to_device(time_ids(framing), latents.device, dtype),
        }
        noisy = self._unet_input(latents, inpainting)
        return self.unet(noisy, timesteps, encoder_hidden_states=states, added_cond_kwargs=added).sample

    def cross_attention_layers(self) -> tuple[str, ...]:
        """Raises `UserError`: vectors for each layer are described for the layers of Stable Diffusion 1.x alone."""
        raise UserError(
            "--xti works with Stable Diffusion 1.x and 2.x: Stable Diffusion XL has other cross-attention layers",
            "leave out --xti",
        )

    def unet_blocks(self) -> Sequence[list[nn.Parameter]]:
        """The U-Net's parameters in 23 blocks: embeddings, 9 down, 3 middle, 9 up, output."""
        blocks: list[list[nn.Parameter]] = [[] for _ in range(_FIRST_OF["out"] + 1)]
        table = module_names(self.unet.config)
        for name, param in self.unet.named_parameters():
            part, _, rest = rename_key(name, table).partition(".")
            number = int(rest.partition(".")[0]) if part.endswith(("blocks", "block")) else 0
            blocks[_FIRST_OF[part] + number].append(param)
        return blocks

    def layers_after_clip_skip(self) -> tuple[nn.Module, ...]:
        """The first text encoder's last layer and final norm, which nothing reads."""
        model = self.text_encoders[0].text_model
        return model.encoder.layers[-1], model.final_layer_norm

    def token_vectors(self, text: str | None = None) -> Mapping[str, torch.Tensor]:
        """Token embeddings, (tokens, D) float32, of each encoder: of a text's tokens, or of all the vocabulary."""
        tables = {TABLES[name]: encoder.token_embedding.weight.detach() for name, encoder in self._encoders.items()}
        if text is not None:
            ids = self.tokenizers["tokenizer"].token_ids(text)
            tables = {name: table[ids] for name, table in tables.items()}
        return {name: table.float() for name, table in tables.items()}

    def add_token(self, text: str, embeddings: Mapping[str, TokenEmbedding]) -> None:
        """Adds a token to both vocabularies. Raises `UserError` if it is in one already."""
        for name, tokenizer in self.tokenizers.items():
            if tokenizer.knows(text):
                raise UserError(f"{text} is in the model's vocabulary already", "choose a token that it does not know")
            encoder = name.replace("tokenizer", "text_encoder")
            ids = embeddings[TABLES[encoder]].attach(self._encoders[encoder].token_embedding)
            self.tokenizers[name] = tokenizer.with_token(text, ids)


def time_ids(framing: Sequence[Framing]) -> torch.Tensor:
    """What the U-Net is told of each image, (B, 6): original height and width, crop top and left, target size."""
    rows = [
        (*reversed(each.original), *reversed(each.crop), *reversed(each.target))  # heights first
        for each in framing
    ]
    return torch.tensor(rows, dtype=torch.float32)


load = StableDiffusionXL.load
