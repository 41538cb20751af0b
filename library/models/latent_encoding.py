"""Encodes images to latents, each sampled with the seed of its key: for training, and for latents made before it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from library.data.caches.latent_cache import latent_seed
from library.data.records import LatentKey
from library.models.device_copies import to_device
from library.models.family import ImageEncoder


@torch.no_grad()
def encode_latents(
    encoder: ImageEncoder, pixels: torch.Tensor, keys: Sequence[LatentKey], batch_size: int, device: torch.device
) -> torch.Tensor:
    """Pixels (B, 3, H, W) in [-1, 1], one image for each key -> unscaled float32 latents (B, C, h, w).

    In chunks of the same size as when caching: with a batch size of 1, a latent is bitwise the same whether it is
    cached or not.
    """
    parts = [
        encoder.encode_images(
            to_device(pixels[start : start + batch_size], device),
            [latent_seed(key) for key in keys[start : start + batch_size]],
        )
        for start in range(0, len(keys), batch_size)
    ]
    return torch.cat(parts)
