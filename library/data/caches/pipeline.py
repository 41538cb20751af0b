"""The latent caching pipeline: images are decoded, encoded and stored concurrently."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch

from library.cli.errors import UserError
from library.data.ahead import results_ahead, thread_pool
from library.data.images.image_files import UnreadableImage
from library.data.records import CachedLatents, LatentKey, TrainedImage

Store = Callable[[Mapping[LatentKey, CachedLatents]], None]

MAX_WAITING_CHUNKS = 4  # chunks that are encoded and not stored yet


@dataclass(frozen=True)
class Stages:
    """The stages that an image goes through, in order."""

    decode: Callable[[LatentKey], TrainedImage]  # called by several threads
    encode: Callable[[torch.Tensor, Sequence[LatentKey]], torch.Tensor]  # pixels (B, 3, H, W) -> (B, C, h, w)
    store: Store  # called by one other thread


@dataclass(frozen=True)
class Throughput:
    """Batch size and number of decoder threads."""

    batch_size: int  # images that are encoded together
    num_decoders: int  # threads

    @property
    def max_decoded(self) -> int:
        """Limit of images being decoded or waiting for the VAE: enough for the next batch and all threads."""
        return self.batch_size + self.num_decoders


def chunks_of(keys: Iterable[LatentKey], batch_size: int) -> list[list[LatentKey]]:
    """Groups of at most `batch_size` keys of one bucket size, to be encoded together."""
    by_bucket: dict[tuple[int, int], list[LatentKey]] = {}
    for key in keys:
        by_bucket.setdefault(key.placement.bucket, []).append(key)
    return [
        same_size[start : start + batch_size]
        for same_size in by_bucket.values()
        for start in range(0, len(same_size), batch_size)
    ]


def cache_chunks(
    chunks: Sequence[Sequence[LatentKey]],
    stages: Stages,
    throughput: Throughput,
    *,
    skips_unreadable: bool = False,
    on_done: Callable[[int], None] = lambda count: None,
) -> dict[str, UnreadableImage]:
    """Caches all latents of `chunks`, in order; returns the errors of skipped images, by path.

    An image whose `decode` raises `UnreadableImage` is skipped with `skips_unreadable`; otherwise its error is raised,
    as any other exception of a stage and Ctrl-C are. All threads have ended when this returns or raises. `on_done` is
    called in this thread after each chunk, with the number of its images.
    """
    unreadable: dict[str, UnreadableImage] = {}
    keys = [key for chunk in chunks for key in chunk]
    with thread_pool(throughput.num_decoders) as decoders, thread_pool(1) as writer:
        decoded = results_ahead(decoders, stages.decode, keys, throughput.max_decoded)
        writes: deque[Future] = deque()
        for chunk in chunks:
            images = _images_of(chunk, decoded, unreadable if skips_unreadable else None)
            if images:
                latents = stages.encode(_stack(images.values()), list(images))
                masks = [image.mask for image in images.values()]
                writes.append(writer.submit(_store, stages.store, list(images), latents, masks))
            _finish(writes, MAX_WAITING_CHUNKS)
            on_done(len(chunk))
        _finish(writes, 0)
    return unreadable


def _images_of(
    chunk: Sequence[LatentKey], decoded: Iterator[Future[TrainedImage]], unreadable: dict[str, UnreadableImage] | None
) -> dict[LatentKey, TrainedImage]:
    images = {}
    for key in chunk:
        try:
            images[key] = next(decoded).result()
        except UnreadableImage as error:
            if unreadable is None:
                raise
            unreadable[key.path] = error
    return images


def _stack(images: Iterable[TrainedImage]) -> torch.Tensor:
    return torch.from_numpy(np.stack([image.pixels for image in images]))


def _store(
    store: Store,
    keys: Sequence[LatentKey],
    latents: torch.Tensor,
    masks: Sequence[np.ndarray | None],
) -> None:
    # copied to the CPU here, while the main thread encodes the next chunk
    fetched = latents.cpu().numpy()
    for key, each in zip(keys, fetched, strict=True):
        if not np.isfinite(each).all():
            raise UserError(
                f"the VAE gives non-finite latents (NaN or inf) for image {key.path}",
                hint="use --no_half_vae, another --mixed_precision, or an undamaged VAE",
            )
    # copies: a view would keep the memory of the whole chunk while one image of it is in use
    cached = [CachedLatents(np.array(each), mask) for each, mask in zip(fetched, masks, strict=True)]
    store(dict(zip(keys, cached, strict=True)))


def _finish(writes: deque[Future], limit: int) -> None:
    """Waits until at most `limit` writes are pending; raises the error of a failed one."""
    while writes and (len(writes) > limit or writes[0].done()):
        writes.popleft().result()
