"""Where the latents of a batch come from: memory, disk, or the VAE."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from accelerate import Accelerator

from library.data.images import load_image
from library.data.latent_cache import latent_seed, latents_to_make, write_latents
from library.data.options import CachingOptions
from library.data.plan import TrainingData
from library.data.records import Batch, CachedLatents, LatentKey
from library.models.family import ModelFamily
from library.training.progress import progress_bar

logger = logging.getLogger(__name__)


class LatentSource:
    """Gives scaled latents for batches, and fills the caches before training."""

    def __init__(self, family: ModelFamily, options: CachingOptions, accelerator: Accelerator):
        self._family = family
        self._options = options
        self._accelerator = accelerator
        self._in_memory: dict[LatentKey, torch.Tensor] = {}

    @property
    def kind(self) -> Literal["pixels", "disk", "memory"]:
        """What a batch has to bring along: pixels to encode, latents from files, or neither."""
        if self._options.cache_latents_to_disk:
            return "disk"
        return "memory" if self._options.cache_latents else "pixels"

    def fill_caches(self, data: TrainingData) -> None:
        """Encodes whatever is not cached yet; does nothing without `--cache_latents`."""
        if self._options.cache_latents_to_disk:
            self._fill_files(data)
        elif self._options.cache_latents:
            self._in_memory.update((key, latents.cpu()) for key, latents in self._encode_all(data.latent_keys()))

    def _fill_files(self, data: TrainingData) -> None:
        fingerprint = self._family.vae_fingerprint()
        missing = latents_to_make(data, fingerprint)
        # both orientations of a picture go into one file: one process writes it
        rank_of = {path: rank for rank, path in enumerate(dict.fromkeys(key.path for key in missing))}
        num_processes = self._accelerator.num_processes
        mine = [key for key in missing if rank_of[key.path] % num_processes == self._accelerator.process_index]
        self._accelerator.wait_for_everyone()  # all have looked at the files before one changes them
        for key, latents in self._encode_all(mine):
            write_latents({key: CachedLatents(latents.cpu().numpy())}, fingerprint)
        self._accelerator.wait_for_everyone()

    def latents_of(self, batch: Batch) -> torch.Tensor:
        """Scaled float32 latents (B, C, h, w) of a batch, on the device."""
        device = self._accelerator.device
        if batch.latents is not None:
            latents = batch.latents.to(device, non_blocking=True)
        elif batch.pixels is not None:
            latents = self._encode(batch.pixels, batch.latent_keys)
        else:
            latents = torch.stack([self._in_memory[key] for key in batch.latent_keys]).to(device)
        return self._family.scale_latents(latents)

    def _encode_all(self, keys: Sequence[LatentKey]) -> Iterator[tuple[LatentKey, torch.Tensor]]:
        is_quiet = not self._accelerator.is_main_process
        with progress_bar(len(keys), "caching latents", is_quiet=is_quiet or not keys) as progress:
            for chunk in self._chunks(keys):
                pixels = torch.stack([torch.from_numpy(load_image(key).pixels) for key in chunk])
                yield from zip(chunk, self._encode(pixels, chunk), strict=True)
                progress.update(len(chunk))

    def _chunks(self, keys: Sequence[LatentKey]) -> Iterator[list[LatentKey]]:
        """Keys of one bucket at a time, at most `vae_batch_size` of them."""
        by_bucket: dict[tuple[int, int], list[LatentKey]] = {}
        for key in keys:
            by_bucket.setdefault(key.placement.bucket, []).append(key)
        for same_size in by_bucket.values():
            for start in range(0, len(same_size), self._options.vae_batch_size):
                yield same_size[start : start + self._options.vae_batch_size]

    @torch.no_grad()
    def _encode(self, pixels: torch.Tensor, keys: Sequence[LatentKey]) -> torch.Tensor:
        # Chunks of the same size as when caching: with the default of one picture at a time, a latent is the same
        # to the bit whether it is cached or not.
        size = self._options.vae_batch_size
        parts = [
            self._family.encode_images(
                pixels[start : start + size].to(self._accelerator.device),
                [latent_seed(key) for key in keys[start : start + size]],
            )
            for start in range(0, len(keys), size)
        ]
        return torch.cat(parts)
