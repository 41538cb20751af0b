"""Latents of a batch: from memory, disk, or the VAE; and filling the latent caches."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from library.cli.errors import UserError, listed, plural
from library.cli.logging import progress_bar
from library.data.batches.loader import num_cpus
from library.data.batches.plan import TrainingData
from library.data.caches.latent_cache import renew_times, write_latents
from library.data.caches.latent_check import check_caches
from library.data.caches.legacy_npz_latents import check_legacy_npz
from library.data.caches.npz_files import remove_leftovers
from library.data.caches.pipeline import Stages, Store, Throughput, cache_chunks, chunks_of
from library.data.caches.shard_latents import ShardLatentWriter, missing_shard_latents
from library.data.config.options import CachingOptions
from library.data.images.decoding import load_image
from library.data.images.image_files import UnreadableImage
from library.data.records import Batch, CachedLatents, LatentInputs, LatentKey
from library.models.device_copies import to_device
from library.models.family import ModelFamily
from library.models.inpainting import Inpainting
from library.models.latent_encoding import encode_latents
from library.training.distributed.processes import file_shares

logger = logging.getLogger(__name__)

_MAX_NAMES_IN_WARNING = 5
_MAX_ERRORS_IN_WARNING = 100
_LATENTS_IN_MESSAGE = 256  # between processes: some 16 MB of images of 512 x 512


class LatentProvider:
    """Provides scaled latents for batches, and fills the latent caches before training."""

    def __init__(
        self, family: ModelFamily, options: CachingOptions, accelerator: Accelerator, skip_unreadable: bool = False
    ):
        """`skip_unreadable`: skip images that cannot be read."""
        self._family = family
        self._options = options
        self._accelerator = accelerator
        self._skip_unreadable = skip_unreadable
        self._in_memory: dict[LatentKey, CachedLatents] = {}

    @property
    def kind(self) -> Literal["pixels", "disk", "memory"]:
        """What the dataloader has to put in a batch: pixels to encode, latents from files, or neither."""
        if self._options.cache_latents_to_disk:
            return "disk"
        return "memory" if self._options.cache_latents else "pixels"

    @property
    def fingerprint(self) -> str | None:
        """The VAE fingerprint that cache files must have; None with --skip_cache_check."""
        return None if self._options.skip_cache_check else self._family.vae_fingerprint()

    def fill_caches(self, data: TrainingData) -> frozenset[str]:
        """Encodes the latents that are not cached or legacy .npz yet; encodes nothing without `--cache_latents`.

        For inpainting models those of masked images too, where the mask is the image's own.
        Returns the paths of skipped unreadable images, the same in all processes. Raises `UserError` for an unreadable
        image where they are not skipped, for files that cannot be written, and for missing legacy .npz latents.
        """
        keys = data.latent_keys()
        check_legacy_npz(keys)
        if self.kind == "pixels":
            return frozenset()
        to_cache = [key for key in keys if key.legacy_npz_path is None]
        if self._family.takes_masks:
            to_cache += [key for key in (each.masked for each in keys) if key.masked_by == "given"]
        unreadable = self._fill_files(to_cache) if self.kind == "disk" else self._fill_memory(to_cache)
        return self._report_unreadable(unreadable) if self._skip_unreadable else frozenset()

    def _fill_files(self, keys: Sequence[LatentKey]) -> dict[str, UnreadableImage]:
        unreadable: dict[str, UnreadableImage] = {}
        for rank, num_processes in file_shares(self._accelerator):
            left = [key for key in keys if key.path not in unreadable]
            in_shards = [key for key in left if key.member is not None]
            unreadable |= self._fill_share([key for key in left if key.member is None], rank, num_processes)
            unreadable |= self._fill_share_of_shards(in_shards, rank, num_processes)
        return unreadable

    def _fill_share_of_shards(
        self, keys: Sequence[LatentKey], rank: int, num_processes: int
    ) -> dict[str, UnreadableImage]:
        """One process encodes all that is missing of a shard, which is one file."""
        missing = missing_shard_latents(keys, self.fingerprint)
        self._accelerator.wait_for_everyone()  # all processes have looked before one changes a file
        mine = list(missing.values())[rank::num_processes]
        chunks = [chunk for of_shard in mine for chunk in chunks_of(of_shard, self._options.vae_batch_size)]
        with ShardLatentWriter(self._family.vae_fingerprint()) as writer:
            unreadable = self._cache(chunks, writer.store)
        self._accelerator.wait_for_everyone()
        return unreadable

    def _fill_share(self, keys: Sequence[LatentKey], rank: int, num_processes: int) -> dict[str, UnreadableImage]:
        check = check_caches(keys, self.fingerprint)
        summary = check.summary()
        if summary is not None and self._accelerator.is_main_process:
            logger.warning("%s", summary)
        # an image's orientations and sizes go into one file: one process writes it
        changed = [*check.missing, *(key for copied in check.copied.values() for key in copied)]
        rank_of = {path: rank for rank, path in enumerate(dict.fromkeys(key.path for key in changed))}
        mine = [key for key in check.missing if rank_of[key.path] % num_processes == rank]
        self._accelerator.wait_for_everyone()  # all processes have checked the files before one changes them
        fingerprint = self._family.vae_fingerprint()
        if rank == 0:
            for folder in check.folders:
                remove_leftovers(folder)
        for path, copied in check.copied.items():
            if rank_of[copied[0].path] % num_processes == rank:
                renew_times(path, copied, fingerprint)
        unreadable = self._cache(
            chunks_of(mine, self._options.vae_batch_size),
            lambda latents: write_latents(latents, fingerprint, check.folders),
        )
        self._accelerator.wait_for_everyone()
        return unreadable

    def _fill_memory(self, keys: Sequence[LatentKey]) -> dict[str, UnreadableImage]:
        """Each process encodes its part of the chunks; then the processes exchange them."""
        chunks = chunks_of(keys, self._options.vae_batch_size)
        num_processes, rank = self._accelerator.num_processes, self._accelerator.process_index
        mine: dict[LatentKey, CachedLatents] = {}
        unreadable = self._cache(chunks[rank::num_processes], mine.update)
        self._in_memory.update(mine)
        if num_processes > 1:
            largest_share = max(sum(map(len, chunks[each::num_processes])) for each in range(num_processes))
            entries = list(mine.items())
            for part in range(math.ceil(largest_share / _LATENTS_IN_MESSAGE)):
                start = part * _LATENTS_IN_MESSAGE
                self._in_memory.update(gather_object(entries[start : start + _LATENTS_IN_MESSAGE]))
        return unreadable

    def _cache(self, chunks: Sequence[Sequence[LatentKey]], store: Store) -> dict[str, UnreadableImage]:
        options, num_images = self._options, sum(map(len, chunks))
        num_decoders = max(1, min(options.max_data_loader_n_workers, num_cpus()))
        is_quiet = not num_images or not self._accelerator.is_main_process
        with progress_bar(num_images, "caching latents", is_quiet=is_quiet) as progress:
            return cache_chunks(
                chunks,
                Stages(load_image, self._encode, store),
                Throughput(options.vae_batch_size, num_decoders),
                skips_unreadable=self._skip_unreadable,
                on_done=progress.update,
            )

    def _report_unreadable(self, unreadable: Mapping[str, UnreadableImage]) -> frozenset[str]:
        """Gathers the unreadable images of all processes, and logs them."""
        everywhere = dict(sorted(gather_object([(path, error.message) for path, error in unreadable.items()])))
        if everywhere and self._accelerator.is_main_process:
            shown = list(everywhere.values())[:_MAX_ERRORS_IN_WARNING]
            rest = len(everywhere) - len(shown)
            lines = "\n  ".join([*shown, f"and {rest} more"] if rest else shown)
            said = plural(len(everywhere), "image cannot be read and is", "images cannot be read and are")
            logger.warning("--skip_bad_images: %s skipped\n  %s", said, lines)
        return frozenset(everywhere)

    def encodes_in_steps(self, data: TrainingData) -> bool:
        """Whether images are encoded in each step: where they are not cached, and where masks are drawn."""
        if self._options.caches_latents and not self._family.takes_masks:
            return False
        return not self._options.caches_latents or any(key.masked.masked_by == "drawn" for key in data.latent_keys())

    def inpainting_of(self, batch: Batch) -> Inpainting | None:
        """What an inpainting model takes of a batch beside its noisy latents, on the device; None for others."""
        if batch.masked is None:
            return None
        loaded = iter(() if batch.masked.masks is None else batch.masked.masks)
        masks = [self._mask_in_memory(key) for key in batch.masked.latent_keys]
        together = torch.stack([next(loaded) if mask is None else mask for mask in masks])
        return Inpainting(to_device(together, self._accelerator.device), self.latents_of(batch.masked))

    def _mask_in_memory(self, key: LatentKey) -> torch.Tensor | None:
        cached = self._in_memory.get(key)
        return None if cached is None else torch.from_numpy(cached.mask)[None]

    def latents_of(self, batch: LatentInputs) -> torch.Tensor:
        """Scaled float32 latents (B, C, h, w) of a batch, on the device.

        The batch holds the latents that come from files, cached or legacy .npz, and the pixels of the other images
        unless their latents are in memory; both in the batch's order. Latents that are `lost` are encoded again.
        """
        device, keys = self._accelerator.device, batch.latent_keys
        in_memory = [key in self._in_memory for key in keys]
        from_file = [self._comes_from_file(key) and index not in batch.lost for index, key in enumerate(keys)]
        is_encoded = [not (held or is_file) for held, is_file in zip(in_memory, from_file, strict=True)]
        parts: list[tuple[list[bool], torch.Tensor]] = []  # of the batch, and their latents
        if any(from_file):
            assert batch.latents is not None
            parts.append((from_file, to_device(batch.latents, device)))
        if any(is_encoded):
            assert batch.pixels is not None
            encoded = self._encode(batch.pixels, [key for key, chosen in zip(keys, is_encoded, strict=True) if chosen])
            if batch.lost:
                self._restore(batch, encoded)
            parts.append((is_encoded, encoded.to(device)))
        if any(in_memory):
            held = [self._in_memory[key].latents for key, chosen in zip(keys, in_memory, strict=True) if chosen]
            parts.append((in_memory, to_device(torch.stack(list(map(torch.from_numpy, held))), device)))
        latents = parts[0][1]
        if len(parts) > 1:
            rows = [(chosen, iter(each)) for chosen, each in parts]
            latents = torch.stack([
                next(next(each) for chosen, each in rows if chosen[index]) for index in range(len(keys))
            ])  # fmt: skip
        if latents.shape[1] != self._family.latent_channels:
            raise UserError(
                f"the latents of {batch.latent_keys[0].path} have {latents.shape[1]} channels, the model takes "
                f"{self._family.latent_channels}",
                hint="delete its latent files: they were cached for another model type",
            )
        return self._family.scale_latents(latents)

    def _restore(self, batch: LatentInputs, latents: torch.Tensor) -> None:
        """Writes cached latents again that another process or a fault has removed."""
        cached = {}
        for index, each in zip(batch.lost, latents.cpu().numpy(), strict=True):
            mask = None if batch.masks is None else batch.masks[index, 0].numpy()
            cached[batch.latent_keys[index]] = CachedLatents(each, mask)
        names = listed([key.path for key in cached], _MAX_NAMES_IN_WARNING)
        logger.warning("the cached latents of %s were removed or broken during training: encoded again", names)
        in_files = {key: each for key, each in cached.items() if key.member is None}  # a shard's file is written whole
        try:
            write_latents(in_files, self._family.vae_fingerprint())
        except UserError as error:
            logger.warning("%s", error)

    def _comes_from_file(self, key: LatentKey) -> bool:
        return (self.kind == "disk" and key.masked_by != "drawn") or key.legacy_npz_path is not None

    def masks_of(self, batch: Batch) -> torch.Tensor | None:
        """Loss masks: the weight of each latent, (B, 1, h, w) in [0, 1] on the device; None without masks.

        In a batch with masks, an image without one has weight 1.
        """
        masks = batch.masks
        if masks is None:
            cached = [self._in_memory.get(key) for key in batch.latent_keys]
            held = [None if each is None else each.mask for each in cached]
            shape = next((mask.shape for mask in held if mask is not None), None)
            if shape is None:
                return None
            ones = torch.ones(shape)
            masks = torch.stack([ones if mask is None else torch.from_numpy(mask) for mask in held])[:, None]
        return to_device(masks, self._accelerator.device)

    def _encode(self, pixels: torch.Tensor, keys: Sequence[LatentKey]) -> torch.Tensor:
        return encode_latents(self._family, pixels, keys, self._options.vae_batch_size, self._accelerator.device)
