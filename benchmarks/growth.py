"""How the cost of the data grows with the number of images: CPU seconds per image at each size, and a fitted exponent.

    python -m benchmarks.growth [--sizes 1000 10000 100000 1000000] [--real 100000] [--rounds 3]

Work that needs files is done on real ones up to `--real` images: tiny images in a folder, in tar shards of a thousand,
and their cache files. Planning, captions and listing latents are done on records without files, up to the largest size.

CPU seconds of this process and of those that it starts, the least of the rounds: on a machine that does other work too
they say more than the clock. The processor's caches are emptied before each time, as a program that does this once
finds them: records of 1,000 images would stay in them, and those of a million do not. The exponent is the slope of
log(seconds) over log(images) by least squares, without the smallest size, where fixed costs count: 1 is linear.
"""

from __future__ import annotations

import argparse
import gc
import io
import math
import os
import resource
import tarfile
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.dataset import make_tiny_images
from benchmarks.figures import Figure
from library.data.batches.items import draw_item, item_positions
from library.data.batches.plan import PlannedDataset, TrainingData
from library.data.caches.latent_check import check_caches
from library.data.caches.npz_files import write_stored
from library.data.caches.shard_files import ShardFiles
from library.data.caches.shard_latents import ShardLatentWriter, missing_shard_latents, read_shard_latents
from library.data.config.config import DatasetConfig, SubsetConfig
from library.data.config.options import DatasetOptions
from library.data.load_data import load_training_data
from library.data.records import CachedLatents, ImageRecord, LatentKey, StepCounter
from library.data.scan.scan_index import INDEX_NAME

TARGET = 1.05
_PER_SHARD = 1000
_BUCKETS = {"enable_bucket": True, "min_bucket_reso": 32, "max_bucket_reso": 128, "bucket_reso_steps": 8}
_LATENTS = CachedLatents(np.zeros((4, 8, 8), dtype=np.float32))
_LONG_AGO = 10**9  # of files: an index keeps what has settled
_VAE = "vae"
_REAL_SIZES = (1000, 4000, 16_000)  # of `figures`: images with files, and without
_RECORD_SIZES = (1000, 30_000, 300_000)
_CACHE_BYTES = 2**27  # more than the processor's caches

Work = tuple[Callable[[], object], Callable[[], object]]  # what is measured, and what is done before each time


def folder_works(folder: Path, size: int) -> dict[str, Work]:
    """Of real files: two for each image."""
    images = folder / f"{size}" / "images"
    make_tiny_images(images, size)
    options = DatasetOptions(
        in_json=None, train_data_dir=str(_as_concept(images)), resolution=(64, 64), cache_info=True, **_BUCKETS
    )
    index = _as_concept(images) / "1_x" / INDEX_NAME
    return {
        "folder: first scan": (lambda: load_training_data(options), lambda: index.unlink(missing_ok=True)),
        "folder: start from its index": (lambda: load_training_data(options), lambda: load_training_data(options)),
    }


def _as_concept(images: Path) -> Path:
    concept = images.with_name("concepts") / "1_x"
    if images.is_dir():
        concept.parent.mkdir()
        images.rename(concept)
    return concept.parent


def shard_works(folder: Path, size: int) -> dict[str, Work]:
    """Of real members: two for each image."""
    shards = folder / f"{size}" / "shards"
    make_shards(shards, size)
    options = DatasetOptions(shards=(str(shards),), resolution=(64, 64), **_BUCKETS)

    def remove_indexes() -> None:
        for index in shards.glob("*.index.json"):
            index.unlink()

    keys = load_training_data(options).latent_keys()
    for chunk in _by_shard(keys):
        with ShardLatentWriter(_VAE) as writer:
            writer.store({key: _latents_of(key) for key in chunk})

    def read_all() -> None:
        files = ShardFiles()
        assert all(read_shard_latents(files, key, _VAE) is not None for key in keys)

    return {
        "shards: first scan": (lambda: load_training_data(options), remove_indexes),
        "shards: start from their indexes": (lambda: load_training_data(options), lambda: load_training_data(options)),
        "shards: cached latents looked up": (lambda: missing_shard_latents(keys, _VAE), lambda: None),
        "shards: cached latents read": (read_all, lambda: None),
    }


def make_shards(folder: Path, size: int) -> None:
    """Tar files of tiny images with captions."""
    folder.mkdir(parents=True)
    make_tiny_images(folder / "one", 32)
    contents = [path.read_bytes() for path in sorted((folder / "one").iterdir()) if path.suffix != ".caption"]
    endings = [path.suffix for path in sorted((folder / "one").iterdir()) if path.suffix != ".caption"]
    for path in (folder / "one").iterdir():
        path.unlink()
    (folder / "one").rmdir()
    for first in range(0, size, _PER_SHARD):
        path = folder / f"{first // _PER_SHARD:06}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
            for number in range(first, min(size, first + _PER_SHARD)):
                kind = number % len(contents)
                _add(archive, f"{number:08}{endings[kind]}", contents[kind])
                _add(archive, f"{number:08}.txt", f"blue sky, grass, hat, river, image {number}".encode())
        os.utime(path, (_LONG_AGO, _LONG_AGO))


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def _by_shard(keys: Sequence[LatentKey]) -> list[list[LatentKey]]:
    by_path: dict[str, list[LatentKey]] = {}
    for key in keys:
        assert key.member is not None
        by_path.setdefault(key.member.shard.path, []).append(key)
    return list(by_path.values())


def _latents_of(key: LatentKey) -> CachedLatents:
    width, height = key.placement.bucket
    return CachedLatents(np.zeros((4, height // 8, width // 8), dtype=np.float32))


def file_cache_works(folder: Path, size: int) -> dict[str, Work]:
    """Of real cache files, one for each image, in folders of a thousand; the images are not there."""
    data = TrainingData((_planned(size, str(folder / f"{size}" / "caches")),))
    keys = data.latent_keys()
    from library.data.caches.cache_names import cache_names
    from library.data.caches.latent_cache import needed_arrays
    from library.data.caches.latent_facts import expected_facts

    for key in keys:
        path = Path(key.path).with_name(cache_names(key)[1])
        path.parent.mkdir(parents=True, exist_ok=True)
        entry = next(iter(needed_arrays(key))).removeprefix("latents_")
        write_stored(path, {f"latents_{entry}": _LATENTS.latents}, {entry: expected_facts(key, _VAE)})
    return {"folder: cached latents looked up": (lambda: check_caches(keys, _VAE), lambda: None)}


def _planned(size: int, folder: str) -> PlannedDataset:
    """A dataset of records without files."""
    subset = SubsetConfig("growth", image_dir=folder, shuffle_caption=True, caption_tag_dropout_rate=0.1)
    config = DatasetConfig("growth", (64, 64), batch_size=4, subsets=(subset,), **_BUCKETS)
    sizes = np.random.RandomState(0).randint(32, 97, (size, 2)).tolist()
    records = [
        ImageRecord(
            f"{number:08}.png",
            f"{folder}/{number // _PER_SHARD:06}/{number:08}.png",
            (width, height),
            0,
            f"blue sky, grass, hat, river, image {number}",
            1,
            0,
            False,
            num_bytes=500,
            ctime_ns=0,
        )
        for number, (width, height) in enumerate(sizes)
    ]
    return PlannedDataset(config, records)


def record_works(size: int) -> dict[str, Work]:
    """Of records without files."""
    planned = _planned(size, "nowhere")
    data = TrainingData((planned,))
    plan = data.batches_of_epoch(1, 0)
    clock = StepCounter(1, len(plan), len(plan))

    def draw_captions() -> None:
        for batch in plan:
            for item, position in zip(batch.item_indices, item_positions(batch, 1, clock), strict=True):
                draw_item(planned, item, position)

    return {
        "records: buckets assigned": (lambda: PlannedDataset(planned.config, planned.records), lambda: None),
        "records: an epoch planned": (lambda: data.batches_of_epoch(1, 0), lambda: None),
        "records: captions, flips and crops drawn": (draw_captions, lambda: None),
        "records: latents listed": (data.latent_keys, lambda: None),
        "records: digest of a state": (data.digest, lambda: None),
    }


def seconds_of(works: dict[str, Work], rounds: int) -> dict[str, list[float]]:
    """The CPU seconds of each work in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    other = np.zeros(_CACHE_BYTES, dtype=np.uint8)
    for _ in range(rounds):
        for name, (work, prepare) in works.items():
            prepare()
            gc.collect()
            other += 1
            started = cpu_seconds()
            work()
            seconds[name].append(cpu_seconds() - started)
    return seconds


def cpu_seconds() -> float:
    """Of this process and of those that it has started and that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """The slope of log(seconds) over log(sizes)."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def memory_per_image(folder: Path, size: int) -> float:
    """Bytes held for each image of shards: its record, its place in the plan."""
    options = DatasetOptions(shards=(str(folder / f"{size}" / "shards"),), resolution=(64, 64), **_BUCKETS)
    load_training_data(options)
    tracemalloc.start()
    data = load_training_data(options)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert data.num_items == size
    return held / size


def measure(
    real_sizes: Sequence[int], record_sizes: Sequence[int], rounds: int, folder: Path
) -> dict[str, dict[int, list[float]]]:
    """The CPU seconds of each work at each size in each round."""
    found: dict[str, dict[int, list[float]]] = {}
    for size in sorted({*real_sizes, *record_sizes}):
        of_files = (folder_works, shard_works, file_cache_works) if size in real_sizes else ()
        works = record_works(size) if size in record_sizes else {}
        for make in of_files:
            works |= make(folder, size)
        for name, seconds in seconds_of(works, rounds).items():
            found.setdefault(name, {})[size] = seconds
    return found


def figures(num_rounds: int) -> list[Figure]:
    """The exponent of each work in each round."""
    with tempfile.TemporaryDirectory() as folder:
        found = measure(_REAL_SIZES, _RECORD_SIZES, num_rounds, Path(folder))
    return [
        Figure(
            f"exponent of {name}",
            tuple(fitted(dict(zip(each, of_round, strict=True))) for of_round in rounds),
            "",
            TARGET,
        )
        for name, each in sorted(found.items())
        for rounds in [list(zip(*each.values(), strict=True))]
    ]


def fitted(seconds: dict[int, float]) -> float:
    """The exponent, without the smallest size where there are more than two."""
    sizes = list(seconds)[1:] if len(seconds) > 2 else list(seconds)
    return exponent(sizes, [seconds[size] for size in sizes]) if len(sizes) > 1 else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--real", type=int, default=100_000, help="largest number of images with files")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    real = [size for size in args.sizes if size <= args.real]
    with tempfile.TemporaryDirectory() as temporary:
        found = measure(real, args.sizes, args.rounds, Path(temporary))
        show({name: {size: min(seconds) for size, seconds in each.items()} for name, each in found.items()})
        if real:
            held = memory_per_image(Path(temporary), max(real))
            print(f"memory held for each of {max(real)} images of shards: {held:.0f} bytes")


def show(figures: dict[str, dict[int, float]]) -> None:
    """A table of microseconds per image."""
    sizes = sorted({size for each in figures.values() for size in each})
    print(f"{'microseconds per image at':<42}", *(f"{size:>10,}" for size in sizes), "  exponent")
    for name, each in sorted(figures.items()):
        cells = [f"{each[size] / size * 1e6:>10.2f}" if size in each else f"{'-':>10}" for size in sizes]
        slope = fitted(each)
        print(f"{name:<42}", *cells, f"{slope:>10.2f}", "" if slope <= TARGET else "  above the target", flush=True)


if __name__ == "__main__":
    main()
