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
from library.data.config.options import CachingOptions
from library.data.images.decoding import load_image
from library.data.images.image_files import UnreadableImage
from library.data.records import Batch, CachedLatents, LatentKey
from library.models.device_copies import to_device
from library.models.family import ModelFamily
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

        Returns the paths of skipped unreadable images, the same in all processes. Raises `UserError` for an unreadable
        image where they are not skipped, for files that cannot be written, and for missing legacy .npz latents.
        """
        keys = data.latent_keys()
        check_legacy_npz(keys)
        if self.kind == "pixels":
            return frozenset()
        to_cache = [key for key in keys if key.legacy_npz_path is None]
        unreadable = self._fill_files(to_cache) if self.kind == "disk" else self._fill_memory(to_cache)
        return self._report_unreadable(unreadable) if self._skip_unreadable else frozenset()

    def _fill_files(self, keys: Sequence[LatentKey]) -> dict[str, UnreadableImage]:
        unreadable: dict[str, UnreadableImage] = {}
        for rank, num_processes in file_shares(self._accelerator):
            unreadable |= self._fill_share([key for key in keys if key.path not in unreadable], rank, num_processes)
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

    def latents_of(self, batch: Batch) -> torch.Tensor:
        """Scaled float32 latents (B, C, h, w) of a batch, on the device.

        The batch holds the latents that come from files, cached or legacy .npz, and the pixels of the other images
        unless their latents are in memory; both in the batch's order. Latents that are `lost` are encoded again.
        """
        device = self._accelerator.device
        from_file = [self._comes_from_file(key) for key in batch.latent_keys]
        for index in batch.lost:
            from_file[index] = False
        keys = [key for key, is_file in zip(batch.latent_keys, from_file, strict=True) if not is_file]
        if not keys:
            assert batch.latents is not None  # all come from files
            latents = to_device(batch.latents, device)
        elif batch.pixels is not None:
            latents = self._encode(batch.pixels, keys)
            if batch.lost:
                self._restore(batch, latents)
            latents = latents.to(device)
        else:
            latents = torch.stack([torch.from_numpy(self._in_memory[key].latents) for key in keys])
            latents = to_device(latents, device)
        if 0 < len(keys) < len(batch.latent_keys):
            assert batch.latents is not None  # some come from files
            files, others = iter(to_device(batch.latents, device)), iter(latents)
            latents = torch.stack([
                next(files if is_file else others) for is_file in from_file
            ])  # fmt: skip
        if latents.shape[1] != self._family.latent_channels:
            raise UserError(
                f"the latents of {batch.latent_keys[0].path} have {latents.shape[1]} channels, the model takes "
                f"{self._family.latent_channels}",
                hint="delete its latent files: they were cached for another model type",
            )
        return self._family.scale_latents(latents)

    def _restore(self, batch: Batch, latents: torch.Tensor) -> None:
        """Writes cached latents again that another process or a fault has removed."""
        cached = {}
        for index, each in zip(batch.lost, latents.cpu().numpy(), strict=True):
            mask = None if batch.masks is None else batch.masks[index, 0].numpy()
            cached[batch.latent_keys[index]] = CachedLatents(each, mask)
        names = listed([key.path for key in cached], _MAX_NAMES_IN_WARNING)
        logger.warning("the cached latents of %s were removed or broken during training: encoded again", names)
        try:
            write_latents(cached, self._family.vae_fingerprint())
        except UserError as error:
            logger.warning("%s", error)

    def _comes_from_file(self, key: LatentKey) -> bool:
        return self.kind == "disk" or key.legacy_npz_path is not None

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
