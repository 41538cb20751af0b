"""The trained embedding of textual inversion: vectors beside the text encoder's frozen token table.

After "An Image is Worth One Word: Personalizing Text-to-Image Generation using Textual Inversion" (Gal et al.,
2208.01618).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class TokenEmbedding(nn.Module):
    """The vectors of one token, the only trained parameters."""

    def __init__(self, text: str, vectors: torch.Tensor):
        """vectors: (layers, vectors, width), in the order of the cross-attention layers; or (1, ...) for all layers."""
        super().__init__()
        self.text = text
        self.vectors = nn.Parameter(vectors.detach().to(torch.float32, copy=True))

    @property
    def num_layers(self) -> int:
        """1 where all cross-attention layers share the vectors."""
        return self.vectors.shape[0]

    @property
    def num_vectors(self) -> int:
        return self.vectors.shape[1]

    def attach(self, table: nn.Embedding) -> range:
        """Makes `table` look up the vectors under ids that follow its own, layer after layer.

        Returns the ids of the first layer's vectors. With a frozen table only the vectors have gradients; for a text
        without the token these are zero, not None.
        """
        look_up, first = table.forward, table.num_embeddings

        def look_up_both(ids: torch.Tensor) -> torch.Tensor:
            is_new = ids >= first
            known = look_up(ids.masked_fill(is_new, 0))
            new = functional.embedding((ids - first).clamp(min=0), self.vectors.flatten(0, 1))
            return torch.where(is_new.unsqueeze(-1), new.to(known.dtype), known)

        table.forward = look_up_both  # type: ignore[method-assign, assignment]
        return range(first, first + self.num_vectors)

    def ids_of_layers(self, ids: torch.Tensor, first: int) -> torch.Tensor:
        """Token ids (B, ...), with the embedding's ids of the first layer -> (layers, B, ...) with those of each layer.

        first: the first of the ids that `attach` returned.
        """
        offsets = torch.arange(self.num_layers, device=ids.device) * self.num_vectors
        return ids + offsets.view(-1, *[1] * ids.dim()) * (ids >= first)
