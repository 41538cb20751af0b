"""The dataloader: batches, made in worker processes, each a function of its position in the epoch's plan."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from library.cli.errors import UserError, first_line
from library.data.ahead import num_cpus, thread_pool
from library.data.batches.items import ItemPosition, draw_item, item_and_replacements, item_positions
from library.data.batches.plan import PlannedDataset, TrainingData
from library.data.batches.worker_signals import ignore_signals, workers_starting
from library.data.caches.latent_cache import read_latents
from library.data.caches.shard_files import ShardFiles
from library.data.caches.shard_latents import read_shard_latents
from library.data.images.decoding import load_image, load_mask, load_masked_image
from library.data.images.image_files import UnreadableImage
from library.data.images.inpaint_masks import MaskShares
from library.data.records import (
    Batch,
    CachedLatents,
    ColourShift,
    Item,
    LatentInputs,
    LatentKey,
    MicroBatch,
    StepCounter,
    TrainedImage,
    size_text,
)

logger = logging.getLogger(__name__)

# where a batch's latents come from: pixels that the caller encodes, files, or the caller's memory
LatentOrigin = Literal["pixels", "disk", "memory"]
Loaded = TrainedImage | CachedLatents | None
T = TypeVar("T")


@dataclass(frozen=True)
class _Use:
    """An item with its pixels or latents, and the errors of unreadable images that it replaces.

    `masked`: the same of the masked image, for inpainting.
    """

    item: Item
    loaded: Loaded
    skipped: tuple[str, ...]
    masked: Loaded = None


class BatchDataset(Dataset):
    """Makes the `Batch` of a `MicroBatch`. Holds no state: the same micro-batch always gives the same batch."""

    def __init__(
        self,
        data: TrainingData,
        *,
        seed: int,
        clock: StepCounter,
        latent_source: LatentOrigin,
        fingerprint: str | None = "",
        prior_loss_weight: float = 1.0,
        skip_bad_images: bool = False,
        unreadable: frozenset[str] = frozenset(),
        inpainting: MaskShares | None = None,
    ):
        """`fingerprint`: of the VAE that cached latents must have been made with, for `latent_source` "disk".

        `inpainting`: for batches with masked images; how masks are drawn for images that have none.

        With `skip_bad_images`, an image that cannot be read, or whose path is in `unreadable`, is replaced by the next
        readable one of its bucket.
        """
        self._data = data
        self._seed = seed
        self._clock = clock
        self._latent_source = latent_source
        self._fingerprint = fingerprint
        self._prior_loss_weight = prior_loss_weight
        self._skip_bad_images = skip_bad_images
        self._unreadable = unreadable
        self._inpainting = inpainting
        self._shard_files = ShardFiles()

    def __getitem__(self, micro_batch: MicroBatch) -> Batch | UserError:
        """The batch, or the error of one of its images: torch would wrap an exception from a dataloader worker."""
        try:
            return self._make_batch(micro_batch)
        except UserError as error:
            return error

    def _make_batch(self, micro_batch: MicroBatch) -> Batch:
        dataset = self._data.datasets[micro_batch.dataset_index]
        positions = item_positions(micro_batch, self._seed, self._clock)
        uses = [
            self._use_of(dataset, item, position)
            for item, position in zip(micro_batch.item_indices, positions, strict=True)
        ]
        weights = [self._prior_loss_weight if use.item.is_reg else 1.0 for use in uses]
        return Batch(
            micro_batch=micro_batch,
            captions=[use.item.caption for use in uses],
            latent_keys=[use.item.latent_key for use in uses],
            loss_weights=torch.tensor(weights, dtype=torch.float32),
            skipped=tuple(dict.fromkeys(message for use in uses for message in use.skipped)),
            lost=tuple(index for index, use in enumerate(uses) if self._is_lost(use.loaded)),
            masked=None if self._inpainting is None else self._masked_images(uses),
            **_stacked([use.loaded for use in uses]),
        )

    def _masked_images(self, uses: Sequence[_Use]) -> LatentInputs:
        keys = [use.item.latent_key.masked for use in uses]
        is_lost = [self._is_lost(use.masked) and key.masked_by == "given" for use, key in zip(uses, keys, strict=True)]
        return LatentInputs(
            latent_keys=keys,
            lost=tuple(index for index, lost in enumerate(is_lost) if lost),
            **_stacked([use.masked for use in uses if use.masked is not None]),
        )

    def _use_of(self, dataset: PlannedDataset, item_index: int, position: ItemPosition) -> _Use:
        """The item, or with `skip_bad_images` the first item after it whose image can be read, used in its position."""
        skipped: list[str] = []
        for candidate in item_and_replacements(dataset, item_index):
            item = draw_item(dataset, candidate, position)
            if item.latent_key.path in self._unreadable:
                continue
            try:
                loaded = self._load(item)
                return _Use(item, loaded, tuple(skipped), self._load_masked(item, loaded))
            except UnreadableImage as error:
                if not self._skip_bad_images:
                    raise
                skipped.append(error.message)
        bucket = dataset.placements[int(dataset.items[item_index])].bucket
        raise UserError(
            f"--skip_bad_images: no image of bucket {size_text(bucket)} of {dataset.config.key_path} can be read",
            hint="repair its images, or remove them from the folder",
        )

    def _is_lost(self, loaded: Loaded) -> bool:
        return self._latent_source == "disk" and isinstance(loaded, TrainedImage)

    def _load(self, item: Item) -> Loaded:
        source: LatentOrigin = "disk" if item.latent_key.legacy_npz_path is not None else self._latent_source
        return self._load_from(source, item.latent_key, item.colour)

    def _load_from(self, source: LatentOrigin, key: LatentKey, colour: ColourShift | None) -> Loaded:
        if source == "disk":
            return _latents_from_disk(key, self._fingerprint, self._shard_files)
        return load_image(key, colour) if source == "pixels" else None

    def _load_masked(self, item: Item, loaded: Loaded) -> Loaded:
        """The masked image; what is masked by the image's own mask is cached as the image is."""
        if self._inpainting is None:
            return None
        key = item.latent_key.masked
        if key.masked_by == "given":
            return self._load_from(self._latent_source, key, item.colour)
        return load_masked_image(item, self._inpainting, loaded if isinstance(loaded, TrainedImage) else None)


def _latents_from_disk(key: LatentKey, fingerprint: str | None, shard_files: ShardFiles) -> Loaded:
    """The cached latents; the image, to be encoded again, where they were removed or broken during training."""
    try:
        if key.member is None:
            latents = read_latents(key, fingerprint)
        else:
            latents = read_shard_latents(shard_files, key, fingerprint)
    except UserError:
        if key.legacy_npz_path is not None:
            raise
        latents = None
    if latents is None:
        return load_image(key)
    return latents if key.mask_path is None or key.masked_by is not None else replace(latents, mask=load_mask(key))


def _stacked(loaded: Sequence[Loaded]) -> dict[str, torch.Tensor]:
    """The tensors of a batch: pixels or latents, or neither, and masks if one of its images has one."""
    pixels = [each.pixels for each in loaded if isinstance(each, TrainedImage)]
    latents = [each.latents for each in loaded if isinstance(each, CachedLatents)]
    masks = [None if each is None else each.mask for each in loaded]
    named = {"pixels": pixels, "latents": latents}
    tensors = {name: torch.from_numpy(np.stack(arrays)) for name, arrays in named.items() if arrays}
    shape = next((mask.shape for mask in masks if mask is not None), None)
    if shape is not None:
        ones = np.ones(shape, dtype=np.float32)  # images without a mask have full weight everywhere
        stacked = np.stack([ones if mask is None else mask for mask in masks])
        tensors["masks"] = torch.from_numpy(stacked[:, None])
    return tensors


def make_loader(
    dataset: Dataset, micro_batches: list[MicroBatch], num_workers: int, persistent: bool = False
) -> DataLoader:
    """A dataloader of the batch of each micro-batch, in order; the same ones for any number of workers.

    The list is read again at each iteration. With `persistent`, workers stay alive between iterations: replace the
    contents of the list, keeping the list, and iterate again.
    """
    num_workers = min(num_workers, num_cpus())
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=micro_batches,
        num_workers=num_workers,
        collate_fn=_identity,
        worker_init_fn=_start_worker,
        persistent_workers=persistent and num_workers > 0,
    )


def _identity(item: Any) -> Any:
    return item


def _start_worker(worker_id: int) -> None:
    cv2.setNumThreads(0)  # threads do not survive a fork, and the workers are the parallelism
    ignore_signals()


def _received_ahead(batches: Iterator[T]) -> Iterator[T]:
    """The same, each received from its worker while the one before is trained on: that takes milliseconds."""
    with thread_pool(1) as pool:
        received = pool.submit(next, batches, None)
        while (batch := received.result()) is not None:
            received = pool.submit(next, batches, None)
            yield batch


class BatchLoader:
    """Loads the batches of one epoch after the other, with the same workers if they are persistent."""

    def __init__(self, dataset: BatchDataset, num_workers: int, persistent: bool):
        self._micro_batches: list[MicroBatch] = []
        self._loader = make_loader(dataset, self._micro_batches, num_workers, persistent)
        self._reported: set[str] = set()

    def batches(self, micro_batches: Sequence[MicroBatch]) -> Iterator[Batch]:
        """The batches of `micro_batches`, in order, with one warning for each unreadable image.

        Raises the `UserError` of an image, or of a worker that has died.
        """
        self._micro_batches[:] = micro_batches
        for batch in self._loaded():
            if isinstance(batch, UserError):
                raise batch
            self._report(batch.skipped)
            yield batch

    def _loaded(self) -> Iterator[Batch | UserError]:
        try:
            with workers_starting(self._loader.multiprocessing_context):
                batches = iter(self._loader)
            yield from _received_ahead(batches) if self._loader.num_workers else batches
        except (RuntimeError, EOFError, OSError) as error:
            # of a worker that dies while it hands over a batch; an image's own error is a batch, not an exception
            is_other = isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker")
            if is_other or self._loader.num_workers == 0:
                raise
            raise UserError(
                f"a process that loads images has died ({first_line(error)})",
                hint="the system may have ended it for lack of memory: lower --max_data_loader_n_workers"
                " (0 loads images in the main process)",
            ) from None

    def _report(self, skipped: Sequence[str]) -> None:
        for message in skipped:
            if message not in self._reported:
                self._reported.add(message)
                logger.warning("%s; using another image of its bucket instead", message)
