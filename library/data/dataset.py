"""Batches: what the loop learns from, made in worker processes, each a function of its place in the plan alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from library.cli.errors import UserError
from library.data.images import load_image
from library.data.items import draw_items
from library.data.latent_cache import read_latents
from library.data.plan import TrainingData
from library.data.records import Batch, LatentKey, MicroBatch, StepClock

# where a batch's latents come from: encoded by the caller from pixels, read from files, or kept by the caller
LatentSource = Literal["pixels", "disk", "memory"]


class BatchDataset(Dataset):
    """Makes the `Batch` of a `MicroBatch`. Holds no state: the same micro-batch always gives the same batch."""

    def __init__(
        self,
        data: TrainingData,
        *,
        seed: int,
        clock: StepClock,
        latent_source: LatentSource,
        fingerprint: str = "",
        prior_loss_weight: float = 1.0,
    ):
        """`fingerprint`: of the VAE that cached latents must have been made with, for `latent_source` "disk"."""
        self._data = data
        self._seed = seed
        self._clock = clock
        self._latent_source = latent_source
        self._fingerprint = fingerprint
        self._prior_loss_weight = prior_loss_weight

    def __getitem__(self, micro_batch: MicroBatch) -> Batch | UserError:
        """The batch, or what is wrong with one of its pictures: torch would wrap an exception from a worker."""
        try:
            return self._make_batch(micro_batch)
        except UserError as error:
            return error

    def _make_batch(self, micro_batch: MicroBatch) -> Batch:
        dataset = self._data.datasets[micro_batch.dataset_index]
        items = draw_items(dataset, micro_batch, self._seed, self._clock)
        keys = [item.latent_key for item in items]
        weights = [self._prior_loss_weight if item.is_reg else 1.0 for item in items]
        load = _LOADERS[self._latent_source]
        return Batch(
            micro_batch=micro_batch,
            captions=[item.caption for item in items],
            latent_keys=keys,
            loss_weights=torch.tensor(weights, dtype=torch.float32),
            **load(keys, self._fingerprint),
        )


def _pixels(keys: list[LatentKey], fingerprint: str) -> dict[str, torch.Tensor]:
    return {"pixels": torch.from_numpy(np.stack([load_image(key).pixels for key in keys]))}


def _latents_from_disk(keys: list[LatentKey], fingerprint: str) -> dict[str, torch.Tensor]:
    latents = [read_latents(key, fingerprint) for key in keys]
    for key, each in zip(keys, latents, strict=True):
        if each is None:
            raise UserError(
                f"the cached latents of {key.path} are gone or were changed during training",
                hint="start again, they are made anew",
            )
    return {"latents": torch.from_numpy(np.stack([each.latents for each in latents if each is not None]))}


def _nothing(keys: list[LatentKey], fingerprint: str) -> dict[str, torch.Tensor]:
    return {}


_LOADERS: dict[str, Callable[[list[LatentKey], str], dict[str, torch.Tensor]]] = {
    "pixels": _pixels,
    "disk": _latents_from_disk,
    "memory": _nothing,
}


def make_loader(
    dataset: Dataset, micro_batches: list[MicroBatch], num_workers: int, persistent: bool = False
) -> DataLoader:
    """Gives the batch of each micro-batch, in order; the same ones for any number of workers.

    The list is read anew at each iteration. With `persistent`, workers live on from one to the next: replace the
    contents of the list, keeping the list, and iterate again.
    """
    num_workers = min(num_workers, _num_cpus())
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=micro_batches,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        worker_init_fn=_start_worker,
        persistent_workers=persistent and num_workers > 0,
    )


def _num_cpus() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows do not have it
        return os.cpu_count() or 1


def _as_it_is(item: Any) -> Any:
    return item


def _start_worker(worker_id: int) -> None:
    cv2.setNumThreads(0)  # threads do not survive a fork, and the workers are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process answers Ctrl-C and ends its workers


class BatchLoader:
    """Loads the batches of one epoch after the other, with the same worker processes where they persist."""

    def __init__(self, dataset: BatchDataset, num_workers: int, persistent: bool):
        self._micro_batches: list[MicroBatch] = []
        self._loader = make_loader(dataset, self._micro_batches, num_workers, persistent)

    def batches(self, micro_batches: Sequence[MicroBatch]) -> Iterator[Batch]:
        """The batches of `micro_batches`, in order. Raises the `UserError` that a picture causes."""
        self._micro_batches[:] = micro_batches
        for batch in self._loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch
