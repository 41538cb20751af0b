"""The pipeline that fills the caches: images are decoded, encoded and stored at the same time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from library.cli.errors import UserError
from library.data.images.image_files import UnreadableImage
from library.data.records import CachedLatents, LatentKey, TrainedImage

T = TypeVar("T")
R = TypeVar("R")

Store = Callable[[Mapping[LatentKey, CachedLatents]], None]

MAX_WAITING_CHUNKS = 4  # encoded and not stored yet


@dataclass(frozen=True)
class Stages:
    """What happens to an image, one after the other."""

    decode: Callable[[LatentKey], TrainedImage]  # called by several threads
    encode: Callable[[torch.Tensor, Sequence[LatentKey]], torch.Tensor]  # pixels (B, 3, H, W) -> (B, C, h, w)
    store: Store  # called by one other thread


@dataclass(frozen=True)
class Throughput:
    """How much is done at once."""

    batch_size: int  # images that are encoded together
    num_decoders: int  # threads

    @property
    def max_decoded(self) -> int:
        """Images that are being decoded, or decoded and waiting: enough for the next batch and for all threads."""
        return self.batch_size + self.num_decoders


def chunks_of(keys: Iterable[LatentKey], batch_size: int) -> list[list[LatentKey]]:
    """The keys that are encoded together: of one bucket size at a time, at most `batch_size` of them."""
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
    """Caches all latents of `chunks`, in order; returns the paths of images that were left out, and why.

    An image whose `decode` raises `UnreadableImage` is left out with `skips_unreadable`, and else ends the work with
    its error, as any other exception of a stage and Ctrl-C do. All threads have ended when this returns or raises.
    `on_done` is called in this thread, with the number of its images after each chunk.
    """
    bad: dict[str, UnreadableImage] = {}
    keys = [key for chunk in chunks for key in chunk]
    with _pool(throughput.num_decoders) as decoders, _pool(1) as writer:
        decoded = _ahead(decoders, stages.decode, keys, throughput.max_decoded)
        writes: deque[Future] = deque()
        for chunk in chunks:
            images = _images_of(chunk, decoded, bad if skips_unreadable else None)
            if images:
                latents = stages.encode(_stack(images.values()), list(images))
                masks = [image.mask for image in images.values()]
                writes.append(writer.submit(_store, stages.store, list(images), latents, masks))
            _finish(writes, MAX_WAITING_CHUNKS)
            on_done(len(chunk))
        _finish(writes, 0)
    return bad


@contextmanager
def _pool(num_threads: int) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="caching")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _ahead(pool: ThreadPoolExecutor, work: Callable[[T], R], items: Sequence[T], limit: int) -> Iterator[Future[R]]:
    """The results of `work` in order, with at most `limit` begun and not fetched."""
    begun: deque[Future[R]] = deque()
    waiting = iter(items)
    for _ in items:
        while len(begun) < limit and (item := next(waiting, None)) is not None:
            begun.append(pool.submit(work, item))
        yield begun.popleft()


def _images_of(
    chunk: Sequence[LatentKey], decoded: Iterator[Future[TrainedImage]], bad: dict[str, UnreadableImage] | None
) -> dict[LatentKey, TrainedImage]:
    images = {}
    for key in chunk:
        try:
            images[key] = next(decoded).result()
        except UnreadableImage as error:
            if bad is None:
                raise
            bad[key.path] = error
    return images


def _stack(images: Iterable[TrainedImage]) -> torch.Tensor:
    return torch.from_numpy(np.stack([image.pixels for image in images]))


def _store(
    store: Store,
    keys: Sequence[LatentKey],
    latents: torch.Tensor,
    masks: Sequence[np.ndarray | None],
) -> None:
    # fetched here: the main thread gives the device its next chunk meanwhile
    fetched = latents.cpu().numpy()
    for key, each in zip(keys, fetched, strict=True):
        if not np.isfinite(each).all():
            raise UserError(
                f"the VAE gives infinite or undefined latents for image {key.path}",
                hint="use a VAE that is sound, in a precision that it can be computed in",
            )
    # copies: a view would keep the memory of the whole chunk for as long as one image of it is used
    cached = [CachedLatents(np.array(each), mask) for each, mask in zip(fetched, masks, strict=True)]
    store(dict(zip(keys, cached, strict=True)))


def _finish(writes: deque[Future], limit: int) -> None:
    """Waits until at most `limit` writes are left, and raises what went wrong in one that has ended."""
    while writes and (len(writes) > limit or writes[0].done()):
        writes.popleft().result()
