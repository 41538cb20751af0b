"""How fast a dataset is found, planned and loaded, and how much memory it takes.

    python benchmarks/dataset.py [--num 100000] [--folder FOLDER]

Makes many tiny images (PNG, JPEG and WebP of various sizes, with captions), kept in FOLDER for the next time, and
measures in fresh processes: the first scan, the start from the index, the memory of both, an epoch's plan. Then, on
images like photographs, what the loader makes of the decoder's speed, and what caching makes of the VAE's. Files are
in the system's cache: what is measured is the program, not the disk. On a busy machine the ratios to a bare walk and a
bare read of the same files, in one process and the same run, say more than the seconds.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

_FORMATS = ((".png", "PNG"), (".jpg", "JPEG"), (".webp", "WEBP"))
_NUM_VARIANTS = 32
_TAGS = ("1girl", "solo", "blue sky", "grass", "running", "smile", "hat", "river", "mountain", "night", "red dress")
_RESOLUTION = 64
_SETTLED_SECONDS = 2.1  # the index leaves out files that were written just before


def make_tiny_images(folder: Path, num: int) -> None:
    """Writes `num` images of a few hundred bytes, each with a caption of some 100 characters."""
    folder.mkdir(parents=True, exist_ok=True)
    variants = [_tiny_image(number) for number in range(_NUM_VARIANTS)]
    rng = random.Random(0)
    for number in range(num):
        ending, content = variants[number % _NUM_VARIANTS]
        caption = ", ".join(rng.choices(_TAGS, k=12)) + f", image {number}"
        _write(f"{folder}/{number:07d}{ending}", content)
        _write(f"{folder}/{number:07d}.caption", caption.encode())
    time.sleep(_SETTLED_SECONDS)


def _tiny_image(number: int) -> tuple[str, bytes]:
    from PIL import Image

    rng = random.Random(number)
    ending, kind = _FORMATS[number % len(_FORMATS)]
    content = io.BytesIO()
    size, colour = (rng.randint(32, 96), rng.randint(32, 96)), tuple(rng.choices(range(256), k=3))
    Image.new("RGB", size, colour).save(content, kind)
    return ending, content.getvalue()


def _write(path: str, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(descriptor, content)
    os.close(descriptor)


def _options(images: Path, **settings: object):
    from library.data.config.options import DatasetOptions

    config = images.parent / "data.toml"
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    subset = f'[[datasets.subsets]]\nimage_dir = "{images.as_posix()}"\nclass_tokens = "x"\n'
    config.write_text("\n".join(["[[datasets]]", *lines, subset]), encoding="utf-8")
    return DatasetOptions(dataset_config=str(config), cache_info=True, enable_bucket=True)


def _tiny_options(images: Path):
    return _options(images, resolution=_RESOLUTION, min_bucket_reso=32, max_bucket_reso=128, bucket_reso_steps=8)


def _start(images: Path, is_traced: bool) -> dict[str, float]:
    """Loads the data as a training run does, in this process, and plans an epoch. Seconds and bytes."""
    from library.data.load_data import load_training_data

    options, before = _tiny_options(images), _peak_bytes()
    if is_traced:
        tracemalloc.start()
    started = time.perf_counter()
    data = load_training_data(options)
    loaded = time.perf_counter()
    plan = data.batches_of_epoch(1, 0)
    planned = time.perf_counter()
    num = sum(1 for _ in plan)
    walked = time.perf_counter()
    assert num == data.num_micro_batches
    memory = {"rss": _peak_bytes() - before}
    if is_traced:
        held, peak = tracemalloc.get_traced_memory()
        memory |= {"held": held, "peak": peak}
    keys_from = time.perf_counter()
    data.latent_keys()
    seconds = {"load": loaded - started, "plan": planned - loaded, "walk": walked - planned}
    return seconds | memory | {"keys": time.perf_counter() - keys_from}


def _peak_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _start_in_fresh_process(images: Path, is_traced: bool = False) -> dict[str, float]:
    command = [sys.executable, __file__, "--start", str(images), *(["--traced"] if is_traced else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_scan(images: Path, num: int) -> None:
    """Prints the figures of finding and planning the tiny images."""
    from library.data.scan.scan_index import INDEX_NAME

    index, per = images / INDEX_NAME, 100_000 / num
    os.listdir(images)
    index.unlink(missing_ok=True)
    first = _start_in_fresh_process(images)
    index.unlink()
    first_traced = _start_in_fresh_process(images, is_traced=True)
    second = min((_start_in_fresh_process(images) for _ in range(3)), key=lambda each: each["load"])
    traced = _start_in_fresh_process(images, is_traced=True)
    walk, read = _best(lambda: _walk(images)), _best(lambda: _read(images))
    _show("first scan against a bare read", first["load"] / read, "times as long", "files opened and read, no more")
    _show("second start against a bare walk", second["load"] / walk, "times as long", "files listed, stat of each")
    _show("first scan", num / first["load"], "images/s", "20,000 or more")
    _show("second start, from the index", second["load"] * per, "s per 100,000", "below 2")
    _show("memory held, records and plan", traced["held"] * per / 1e6, "MB per 100,000", "100 or less")
    _show("peak memory of the first scan", first_traced["peak"] * per / 1e6, "MB per 100,000", "100 or less")
    _show("peak memory of the second start", traced["peak"] * per / 1e6, "MB per 100,000", "100 or less")
    _show("resident memory, first scan", first["rss"] * per / 1e6, "MB per 100,000", "NumPy and libraries included")
    _show("resident memory, second start", second["rss"] * per / 1e6, "MB per 100,000", "NumPy and libraries included")
    _show("an epoch planned", second["plan"] * per, "s per 100,000", "below 0.5")
    _show("an epoch planned and gone through", (second["plan"] + second["walk"]) * per, "s per 100,000", "below 0.5")
    _show("the latents that are needed listed", second["keys"] * per, "s per 100,000", "no target")


def _walk(folder: Path) -> None:
    for entry in os.scandir(folder):
        os.stat(entry.path)


def _read(folder: Path) -> None:
    for entry in os.scandir(folder):
        descriptor = os.open(entry.path, os.O_RDONLY)
        os.fstat(descriptor)
        os.read(descriptor, 4096)
        os.close(descriptor)


def measure_loader(folder: Path, num: int = 240, size: int = 512) -> None:
    """Prints what is left of the decoder's speed in batches."""
    import cv2
    import torch

    from library.data.batches.loader import BatchDataset, make_loader
    from library.data.images.decoding import load_image
    from library.data.load_data import load_training_data
    from library.data.records import StepCounter

    cv2.setNumThreads(1)  # as in the loader's processes
    torch.set_num_threads(1)
    images = folder / "photographs" / "images"
    _make_photographs(images, num, size)
    data = load_training_data(_options(images, resolution=size, batch_size=4))
    plan, keys = data.batches_of_epoch(1, 0)[:], data.latent_keys()
    dataset = BatchDataset(data, seed=1, clock=StepCounter(1, len(plan), len(plan)), latent_source="pixels")

    def decode() -> None:
        for key in keys:
            load_image(key)

    def load(num_workers: int) -> Callable[[], None]:
        def run() -> None:
            for batch in make_loader(dataset, plan, num_workers):
                assert isinstance(batch.pixels, torch.Tensor), batch

        return run

    bare = num / _best(decode)
    _show("decoder alone, in a loop", bare, "images/s", f"{size} px")
    for workers, target in ((0, "95 or more"), (2, "150 or more on two free cores")):
        _show(f"loader, {workers} workers", 100 * num / _best(load(workers)) / bare, "% of the loop", target)


def _make_photographs(folder: Path, num: int, size: int) -> None:
    """Smooth colours with noise over them, which compress about as photographs do, somewhat larger than trained."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num):
        rng = np.random.default_rng(number)
        ending, kind = _FORMATS[number % len(_FORMATS)]
        path = folder / f"{number:05d}{ending}"
        if path.exists():
            continue
        width, height = rng.integers(size, size * 3 // 2, 2)
        x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
        colours, slopes = rng.uniform(0, 255, 3), rng.uniform(-200, 200, (2, 3))
        noisy = colours + x[..., None] * slopes[0] + y[..., None] * slopes[1] + rng.normal(0, 6, (height, width, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, kind)


def _best(work: Callable[[], None], rounds: int = 3) -> float:
    """The least seconds: a busy machine only ever takes time away."""
    return min(_seconds(work) for _ in range(rounds))


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure_caching_throughput() -> None:
    """Prints what is left of the VAE's speed when latents are cached."""
    try:
        from benchmarks.caching import measure_caching
    except ImportError as error:
        print(f"caching is not measured: {error}")
        return
    result = measure_caching()
    _show("VAE alone", result["vae_only"], "images/s", "")
    for where in ("memory", "disk"):
        _show(f"caching to {where}", 100 * result[where], "% of the VAE alone", "95 or more")


def _show(name: str, value: float, unit: str, target: str) -> None:
    print(f"{name:<36} {value:>10,.2f}  {unit:<20} {target}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=100_000, help="tiny images")
    parser.add_argument("--folder", type=Path, help="where the images are made and kept; else a temporary folder")
    parser.add_argument("--skip_loader", action="store_true", help="measure neither the loader nor caching")
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)  # one start, in a process of its own
    parser.add_argument("--traced", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.start is not None:
        print(json.dumps(_start(args.start, args.traced)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        images = folder / f"tiny{args.num}" / "images"
        if not images.is_dir():
            making = images.with_name("making")
            make_tiny_images(making, args.num)
            making.rename(images)
        measure_scan(images, args.num)
        if not args.skip_loader:
            measure_loader(folder)
            measure_caching_throughput()


if __name__ == "__main__":
    main()
