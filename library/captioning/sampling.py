"""Random captions whose words depend on a key of the image, and not on what else is in the batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LogitsProcessor

from library.data.randomness import keyed_random


class KeyedNucleusSampling(LogitsProcessor):
    """Nucleus sampling (Holtzman et al., 1904.09751): one of the fewest tokens whose sum reaches `top_p`.

    It leaves the drawn token alone possible, so that it is to be used without sampling, which takes the most probable
    one. Each token takes one uniform number, of a key of seed, image and position in the caption.
    """

    def __init__(self, keys: Sequence[str], seed: int, top_p: float):
        """keys: of the images of the batch."""
        self._keys, self._seed, self._top_p = keys, seed, top_p

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """input_ids (B, length), scores (B, vocabulary) -> scores that are -inf but for one token."""
        position = input_ids.shape[1]
        numbers = [keyed_random("caption", self._seed, key, position).random() for key in self._keys]
        tokens = draw_from_nucleus(scores, torch.tensor(numbers, dtype=torch.float64), self._top_p)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens[:, None], 0.0)


def draw_from_nucleus(scores: torch.Tensor, numbers: torch.Tensor, top_p: float) -> torch.Tensor:
    """The token (B,) of each row of scores (B, vocabulary), for uniform `numbers` (B,) in [0, 1)."""
    # on the CPU, in double precision: sums of many small numbers, of which one falls to each side
    ordered, tokens = torch.sort(scores.detach().cpu().double().softmax(-1), dim=-1, descending=True, stable=True)
    sums = ordered.cumsum(-1)
    num_kept = (sums - ordered < top_p).sum(-1)
    kept_mass = sums.gather(1, num_kept[:, None] - 1)
    drawn = torch.searchsorted(sums, numbers[:, None] * kept_mass, right=True)[:, 0]
    return tokens.gather(1, torch.minimum(drawn, num_kept - 1)[:, None])[:, 0].to(scores.device)
