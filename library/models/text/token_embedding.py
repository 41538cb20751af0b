"""A word that a text encoder learns: vectors beside its table of tokens, which stays as it is.

After "An Image is Worth One Word: Personalizing Text-to-Image Generation using Textual Inversion" (Gal et al.,
2208.01618).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class TokenEmbedding(nn.Module):
    """The vectors of a word, the only weights that learn."""

    def __init__(self, text: str, vectors: torch.Tensor):
        """vectors: (layers, vectors, width), each layer's in the order of the denoiser's layers; or one for all."""
        super().__init__()
        self.text = text
        self.vectors = nn.Parameter(vectors.detach().to(torch.float32, copy=True))

    @property
    def num_layers(self) -> int:
        """1 where all layers of the denoiser are told the same."""
        return self.vectors.shape[0]

    @property
    def num_vectors(self) -> int:
        return self.vectors.shape[1]

    def attach(self, table: nn.Embedding) -> range:
        """Lets `table` find the vectors under ids behind its own, those of one layer after the other.

        Returns the ids of the first layer's. Gradients reach the vectors alone if the table is frozen; they are there
        (as zeros) for a text without the word too.
        """
        look_up, first = table.forward, table.num_embeddings

        def look_up_both(ids: torch.Tensor) -> torch.Tensor:
            is_new = ids >= first
            known = look_up(ids.masked_fill(is_new, 0))
            new = functional.embedding((ids - first).clamp(min=0), self.vectors.flatten(0, 1))
            return torch.where(is_new.unsqueeze(-1), new.to(known.dtype), known)

        table.forward = look_up_both  # type: ignore[method-assign]
        return range(first, first + self.num_vectors)

    def ids_of_layers(self, ids: torch.Tensor, first: int) -> torch.Tensor:
        """(B, ...) ids with the word's for the first layer -> (layers, B, ...) with those of each layer.

        first: the first of the ids that `attach` gave.
        """
        offsets = torch.arange(self.num_layers, device=ids.device) * self.num_vectors
        return ids + offsets.view(-1, *[1] * ids.dim()) * (ids >= first)
