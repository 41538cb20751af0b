"""Without these, filling the caches is slow, eats all memory, hangs, or hides what went wrong."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch

from library.cli.errors import UserError
from library.data.caches.pipeline import MAX_WAITING_CHUNKS, Stages, Throughput, cache_chunks, chunks_of
from library.data.images.image_files import UnreadableImage
from library.data.records import CachedLatents, LatentKey, Placement, TrainedImage

PATIENCE = 30  # seconds until a stage that waits in vain gives up; none does where stages overlap


def _keys(count: int, bucket: tuple[int, int] = (16, 8)) -> list[LatentKey]:
    placement = Placement(bucket, bucket, (0, 0))
    return [LatentKey(f"{index}.png", f"{index}.png", bucket, 0, placement, False) for index in range(count)]


def _decode(key: LatentKey) -> TrainedImage:
    return TrainedImage(np.full((3, 8, 16), float(key.image_key.removesuffix(".png")), np.float32))


def _encode(pixels: torch.Tensor, keys: Sequence[LatentKey]) -> torch.Tensor:
    return pixels[:, :, ::8, ::8] + 1000


def _run(keys, *, batch_size=2, num_decoders=3, decode=_decode, encode=_encode, store=None, **more):
    stored: dict[LatentKey, CachedLatents] = {}
    chunks = chunks_of(keys, batch_size)
    bad = cache_chunks(
        chunks, Stages(decode, encode, store or stored.update), Throughput(batch_size, num_decoders), **more
    )
    return stored, bad


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.mark.parametrize(("batch_size", "num_decoders"), [(1, 1), (1, 4), (3, 1), (4, 2), (100, 2)])
def test_each_image_is_encoded_once_in_chunks_of_one_size_and_stored_under_its_name(batch_size, num_decoders):
    keys = _keys(7) + _keys(5, (16, 16))
    sizes = []

    def encode(pixels: torch.Tensor, keys: Sequence[LatentKey]) -> torch.Tensor:
        sizes.append({key.placement.bucket for key in keys})
        assert len(pixels) == len(keys) <= batch_size
        return _encode(pixels, keys)

    counts: list[int] = []
    stored, bad = _run(keys, batch_size=batch_size, num_decoders=num_decoders, encode=encode, on_done=counts.append)
    assert stored.keys() == set(keys) and bad == {} and sum(counts) == 12
    assert all(len(each) == 1 for each in sizes)
    for key, cached in stored.items():
        number = float(key.image_key.removesuffix(".png"))
        np.testing.assert_array_equal(cached.latents, np.full((3, 1, 2), 1000 + number))


def test_images_are_decoded_and_latents_stored_while_others_are_encoded():
    """Each stage waits for the next image in the stage before it: one after the other, none would get on."""
    decoding = [threading.Event() for _ in range(4)]
    encoding = [threading.Event() for _ in range(4)]

    def decode(key: LatentKey) -> TrainedImage:
        decoding[int(key.image_key[0])].set()
        return _decode(key)

    def encode(pixels: torch.Tensor, keys: Sequence[LatentKey]) -> torch.Tensor:
        number = int(keys[0].image_key[0])
        encoding[number].set()
        assert decoding[min(number + 1, 3)].wait(PATIENCE)
        return _encode(pixels, keys)

    stored = []

    def store(latents: Mapping[LatentKey, CachedLatents]) -> None:
        assert encoding[min(int(next(iter(latents)).image_key[0]) + 1, 3)].wait(PATIENCE)
        stored.append(latents)

    _run(_keys(4), batch_size=1, num_decoders=1, decode=decode, encode=encode, store=store)
    assert len(stored) == 4


def test_memory_stays_flat_however_many_images_there_are():
    lock = threading.Lock()
    now = {"decoded": 0, "encoded": 0}
    most = dict(now)

    def add(stage: str, count: int) -> None:
        with lock:
            now[stage] += count
            most[stage] = max(most[stage], now[stage])

    def decode(key: LatentKey) -> TrainedImage:
        add("decoded", 1)
        return _decode(key)

    def encode(pixels: torch.Tensor, keys: Sequence[LatentKey]) -> torch.Tensor:
        add("decoded", -len(keys))
        add("encoded", len(keys))
        return _encode(pixels, keys)

    slow = threading.Event()

    def store(latents: Mapping[LatentKey, CachedLatents]) -> None:
        slow.wait(0.002)  # never set: a disk that is slower than the rest
        add("encoded", -len(latents))

    _run(_keys(200), batch_size=4, num_decoders=3, decode=decode, encode=encode, store=store)
    assert now == {"decoded": 0, "encoded": 0}
    # the chunk being put together, and those ahead of it
    assert most["decoded"] <= 4 + Throughput(4, 3).max_decoded == 11
    assert most["encoded"] <= 4 * (MAX_WAITING_CHUNKS + 1)


def _broken(key: LatentKey) -> TrainedImage:
    if key.image_key in ("5.png", "9.png"):
        raise UnreadableImage(f"image {key.path} cannot be read: it is damaged")
    return _decode(key)


def test_a_image_that_cannot_be_read_ends_the_work_with_its_name():
    with pytest.raises(UnreadableImage, match="image 5.png cannot be read"):
        _run(_keys(50), decode=_broken)


def test_images_that_cannot_be_read_are_left_out_where_asked_for():
    stored, bad = _run(_keys(12), decode=_broken, skips_unreadable=True)
    assert sorted(bad) == ["5.png", "9.png"] and "damaged" in bad["5.png"].message
    assert [key.image_key for key in stored] == [f"{index}.png" for index in range(12) if index not in (5, 9)]
    assert _run(_keys(10)[5:6], decode=_broken, skips_unreadable=True)[0] == {}


def test_other_mistakes_are_not_taken_for_bad_images():
    def changed(key: LatentKey) -> TrainedImage:
        raise UserError("image has changed")

    with pytest.raises(UserError, match="has changed"):
        _run(_keys(3), decode=changed, skips_unreadable=True)


@pytest.mark.parametrize("failing", [0, 3, 11])
def test_what_goes_wrong_while_storing_is_raised(failing):
    stored = []

    def store(latents: Mapping[LatentKey, CachedLatents]) -> None:
        if len(stored) == failing:
            raise UserError("disk is full")
        stored.append(latents)

    with pytest.raises(UserError, match="disk is full"):
        _run(_keys(12), batch_size=1, store=store)
    assert len(stored) == failing  # nothing more is tried on a full disk


@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.cuda.OutOfMemoryError])
def test_an_interruption_while_encoding_ends_the_work(error):
    def encode(pixels: torch.Tensor, keys: Sequence[LatentKey]) -> torch.Tensor:
        raise error

    with pytest.raises(error):
        _run(_keys(50), encode=encode)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_junk_from_the_vae_is_not_cached(value):
    def encode(pixels: torch.Tensor, keys: Sequence[LatentKey]) -> torch.Tensor:
        latents = _encode(pixels, keys)
        latents[-1, 0, 0, 0] = value if any(key.image_key == "3.png" for key in keys) else 0
        return latents

    stored = {}
    with pytest.raises(UserError, match="non-finite latents .NaN or inf. for image 3.png"):
        _run(_keys(4), encode=encode, store=stored.update)
    assert [key.image_key for key in stored] == ["0.png", "1.png"]
